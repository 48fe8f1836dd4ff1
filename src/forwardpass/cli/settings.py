"""From the words of the command line to the settings of a search."""

from __future__ import annotations

from forwardpass.cli.options import profile_settings
from forwardpass.core.slo import QualityFloor, Slo
from forwardpass.optimize import OptimizeSettings, Target

__all__ = ["optimize_settings"]


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
