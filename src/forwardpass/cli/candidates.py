"""The table of a search: every variant with its numbers, and one sentence why."""

from __future__ import annotations

import click

from forwardpass.cli.rendering import echo_table
from forwardpass.optimize import Candidate, Optimization, Target, Verdict
from forwardpass.report.format import format_bytes, format_measurement, format_usd

__all__ = ["echo_candidates"]

_COLOURS = {Verdict.CHOSEN: "green", Verdict.FAILED: "red", Verdict.REJECTED: "yellow"}


def echo_candidates(optimization: Optimization) -> None:
    """Print the variants, the reasons, the choice and the warnings."""
    header = ("variant", "p50", "gain", optimization.metric, "vs source", "size", "verdict")
    rows = [_row(candidate) for candidate in optimization.candidates]
    echo_table(rows, header=header, right=(1, 2, 3, 4, 5))
    click.echo()
    echo_table([[candidate.variant.name, candidate.reason] for candidate in optimization.candidates])
    click.echo()
    click.echo(f"chosen: {optimization.chosen}: {optimization.reason}")
    click.echo(
        f"{optimization.metric} on {optimization.num_test} test samples; the floor of {optimization.floor_score:.4g} "
        f"was applied to {optimization.num_validation} validation samples"
    )
    if optimization.target is Target.COST and optimization.prices is not None:
        click.echo(f"prices: {optimization.prices}; every processor busy")
        listed = [
            f"{candidate.variant.name} {format_usd(1e6 * candidate.row_usd)}"
            for candidate in optimization.candidates
            if candidate.row_usd is not None
        ]
        fee = optimization.prices.request_usd
        of_it = f" ({format_usd(1e6 * fee)} of each is the fee for a request)" if fee else ""
        click.echo(f"a million rows{of_it}: {', '.join(listed)}")
    for sentence in optimization.left_out:
        click.echo(f"left out: {sentence}")
    for warning in optimization.warnings:
        click.echo(f"warning: {warning}")


def _row(candidate: Candidate) -> list[str]:
    verdict = click.style(candidate.verdict.value, fg=_COLOURS.get(candidate.verdict))
    profile = candidate.profile
    if profile is None or candidate.test is None or candidate.gain is None or candidate.test_difference is None:
        return [candidate.variant.name, "", "", "", "", "", verdict]
    return [
        candidate.variant.name,
        format_measurement(profile.best_latency.p50_s),
        f"{candidate.gain.value:.2f}x",
        f"{candidate.test.value:.4f}",
        f"{candidate.test_difference.value:+.4f}",
        format_bytes(profile.file_bytes) if profile.file_bytes is not None else "",
        verdict,
    ]
