"""From the words of the command line to the settings of a search."""

from __future__ import annotations

import math
from dataclasses import replace

from forwardpass.cli.options import profile_settings
from forwardpass.core.slo import QualityFloor, Slo
from forwardpass.errors import InvalidOption
from forwardpass.lean import LeanSettings, PruneSettings, SparsitySettings, StudentSettings, TrainSettings
from forwardpass.optimize import OptimizeSettings, Prices, Route, Target
from forwardpass.optimize.budget import parse_duration_s
from forwardpass.optimize.prices import checked, load_prices

__all__ = ["lean_settings", "optimize_settings"]


DEFAULT_MAX_DROP = "1%"


def optimize_settings(
    *,
    max_drop: str | None,
    floor: float | None,
    target: str,
    slo: str | None,
    pin_processor: bool,
    budget: str | None,
    routes: str,
    prices: str,
    vcpu_hour_usd: float | None,
    gb_hour_usd: float | None,
    quick: bool,
) -> OptimizeSettings:
    """Parse what the user may set.

    Raises:
        InvalidOption: the floor, the latency target, the routes, the prices or the budget does not parse, or two of
            them do not go together.
    """
    if pin_processor and Target(target) is not Target.COLD_START:
        expected = "cold-start, the only target that --pin-processor is for"
        raise InvalidOption(option="--target", value=target, expected=expected)
    return OptimizeSettings(
        floor=_quality_floor(max_drop, floor),
        target=Target(target),
        slo=Slo.parse(slo) if slo is not None else None,
        profile=profile_settings(quick=quick),
        prices=_prices(prices, vcpu_hour_usd, gb_hour_usd),
        routes=_routes(routes),
        pin_processor=pin_processor,
        is_brief=quick,
        budget_s=parse_duration_s(budget) if budget is not None else None,
    )


def _prices(name: str, vcpu_hour_usd: float | None, gb_hour_usd: float | None) -> Prices:
    """Take the named prices, with those in place of theirs that are given; then the whole is the user's own."""
    found = load_prices(name)
    if vcpu_hour_usd is None and gb_hour_usd is None:
        return found
    own = Prices(
        what=f"prices of your own instead of those of {found.what}",
        vcpu_hour_usd=found.vcpu_hour_usd if vcpu_hour_usd is None else vcpu_hour_usd,
        gb_hour_usd=found.gb_hour_usd if gb_hour_usd is None else gb_hour_usd,
        gb_per_vcpu=found.gb_per_vcpu,
        request_usd=found.request_usd,
        billed_step_s=found.billed_step_s,
        one_request_at_a_time=found.one_request_at_a_time,
    )
    return checked(own, option="--vcpu-hour-usd and --gb-hour-usd", value=f"{own.vcpu_hour_usd:g}, {own.gb_hour_usd:g}")


def lean_settings(
    *,
    prune: str | None,
    prune_multiple: int | None,
    sparsity: str | None,
    per_layer: bool,
    distill: str | None,
    quantise_aware: bool,
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
        quantise_aware=quantise_aware,
        training=TrainSettings(num_epochs=epochs, learning_rate=learning_rate, seed=seed),
        train_data=train_data,
    )


def _routes(text: str) -> tuple[Route, ...]:
    names = [name.strip() for name in text.split(",")]
    if not set(names) <= set(Route):
        raise InvalidOption(option="--routes", value=text, expected=f"{', '.join(Route)}, or both with a comma")
    return tuple(route for route in Route if route in names)


def _quality_floor(max_drop: str | None, floor: float | None) -> QualityFloor:
    """Combine the options: a floor replaces the drop that is allowed by default, not one that is given."""
    if floor is not None and not math.isfinite(floor):
        raise InvalidOption(option="--floor", value=f"{floor:g}", expected="a score")
    if floor is not None and max_drop is None:
        return QualityFloor(max_drop=math.inf, is_relative=False, absolute=floor)
    return replace(QualityFloor.parse(max_drop or DEFAULT_MAX_DROP), absolute=floor)
