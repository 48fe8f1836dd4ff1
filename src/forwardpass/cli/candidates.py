"""The table of a search: every variant with its numbers, and one sentence why."""

from __future__ import annotations

from collections.abc import Sequence

import click

from forwardpass.cli.rendering import echo_table
from forwardpass.optimize import Candidate, Optimization, Target, Verdict
from forwardpass.profile import VariantProfile
from forwardpass.report.format import format_bytes, format_measurement, format_usd

__all__ = ["echo_candidates", "one_for_each_reason"]

_TARGET_COLUMNS = {Target.COLD_START: ("cold start",), Target.COST: ("a million rows",)}
_COLOURS = {Verdict.CHOSEN: "green", Verdict.FAILED: "red", Verdict.REJECTED: "yellow"}


def echo_candidates(optimization: Optimization) -> None:
    """Print the variants, the reasons, the choice and the warnings."""
    target = optimization.target
    header = ("variant", "p50", *_TARGET_COLUMNS.get(target, ()), "gain", optimization.metric, "vs source", "size")
    told = one_for_each_reason(optimization.candidates)
    rows = [_row(candidate, target, names) for candidate, names in told]
    echo_table(rows, header=(*header, "verdict"), right=range(1, len(header)))
    click.echo()
    echo_table([[names, candidate.reason] for candidate, names in told])
    click.echo()
    click.echo(f"chosen: {optimization.chosen}: {optimization.reason}")
    click.echo(
        f"{optimization.metric} on {optimization.num_test} test samples; the floor of {optimization.floor_score:.4g} "
        f"was applied to {optimization.num_validation} validation samples"
    )
    if optimization.course:
        click.echo(f"search: {optimization.course}")
    if optimization.target is Target.COST and optimization.prices is not None:
        click.echo(f"prices: {optimization.prices}; every processor busy")
        if optimization.prices.request_usd:
            click.echo(
                f"of a million rows, {format_usd(1e6 * optimization.prices.request_usd)} is the fee for requests"
            )
    for sentence in optimization.left_out:
        click.echo(f"left out: {sentence}")
    for warning in optimization.warnings:
        click.echo(f"warning: {warning}")


def one_for_each_reason(candidates: Sequence[Candidate]) -> list[tuple[Candidate, str]]:
    """Return the candidates with what each is called; those with nothing to gain for one reason are told as one."""
    told: list[tuple[Candidate, str]] = []
    needless: set[str] = set()
    for candidate in candidates:
        if candidate.verdict is not Verdict.NEEDLESS:
            told.append((candidate, candidate.variant.name))
        elif candidate.reason not in needless:
            needless.add(candidate.reason)
            alike = [it for it in candidates if (it.verdict, it.reason) == (candidate.verdict, candidate.reason)]
            more = f" and {len(alike) - 1} more" if len(alike) > 1 else ""
            told.append((candidate, f"{candidate.variant.name}{more}"))
    return told


def _row(candidate: Candidate, target: Target, names: str) -> list[str]:
    verdict = click.style(candidate.verdict.value, fg=_COLOURS.get(candidate.verdict))
    profile = candidate.profile
    num_columns = 5 + len(_TARGET_COLUMNS.get(target, ()))
    if profile is None or candidate.test is None or candidate.gain is None or candidate.test_difference is None:
        return [names, *[""] * num_columns, verdict]
    return [
        names,
        format_measurement(profile.best_latency.p50_s),
        *_at_target(candidate, profile, target),
        f"{candidate.gain.value:.2f}x",
        f"{candidate.test.value:.4f}",
        f"{candidate.test_difference.value:+.4f}",
        format_bytes(profile.file_bytes) if profile.file_bytes is not None else "",
        verdict,
    ]


def _at_target(candidate: Candidate, profile: VariantProfile, target: Target) -> list[str]:
    """Return what the gain is of, where that is in no other column."""
    if target is Target.COLD_START:
        return [format_measurement(profile.cold_start.total_s)]
    if target is Target.COST:
        return [format_usd(1e6 * candidate.row_usd) if candidate.row_usd is not None else ""]
    return []
