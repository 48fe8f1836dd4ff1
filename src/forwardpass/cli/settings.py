"""From the words of the command line to the settings of a search."""

from __future__ import annotations

from forwardpass.cli.options import profile_settings
from forwardpass.core.slo import QualityFloor, Slo
from forwardpass.lean import LeanSettings, PruneSettings, SparsitySettings, StudentSettings, TrainSettings
from forwardpass.optimize import OptimizeSettings, Target

__all__ = ["lean_settings", "optimize_settings"]


def optimize_settings(*, max_drop: str, target: str, slo: str | None, quick: bool) -> OptimizeSettings:
    """Parse what the user may set.

    Raises:
        InvalidOption: the floor or the latency target does not parse.
    """
    return OptimizeSettings(
        floor=QualityFloor.parse(max_drop),
        target=Target(target),
        slo=Slo.parse(slo) if slo is not None else None,
        profile=profile_settings(quick=quick),
    )


def lean_settings(
    *,
    prune: str | None,
    prune_multiple: int,
    sparsity: str | None,
    per_layer: bool,
    distill: str | None,
    train_data: str,
    epochs: int,
    learning_rate: float,
    seed: int,
) -> LeanSettings:
    """Parse which leaner networks the user wants.

    Raises:
        InvalidOption: a share or a student does not parse.
    """
    return LeanSettings(
        prune=PruneSettings.parse(prune, round_to=prune_multiple) if prune is not None else None,
        sparsity=SparsitySettings.parse(sparsity, per_layer=per_layer) if sparsity is not None else None,
        student=StudentSettings.parse(distill) if distill is not None else None,
        training=TrainSettings(num_epochs=epochs, learning_rate=learning_rate, seed=seed),
        train_data=train_data,
    )
