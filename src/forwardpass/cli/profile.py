"""`forwardpass profile`: what a model costs on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from forwardpass.cli.options import (
    comma_separated_counts,
    data_option,
    json_option,
    model_argument,
    profile_settings,
    source_options,
)
from forwardpass.cli.progress import shown_progress
from forwardpass.cli.rendering import echo_json, echo_table, heading
from forwardpass.core.operators import OperatorBreakdown
from forwardpass.errors import InvalidOption
from forwardpass.profile import InvarianceVerdict, StartStudy, StartTrial, VariantProfile, speedup
from forwardpass.report.format import format_bytes, format_measurement, format_ratio, format_seconds
from forwardpass.report.writing import check_writable, write_text

__all__ = ["command"]

TRACE_S = 1.0
QUICK_TRACE_S = 0.2
LEAK_BYTES_PER_CALL = 256
"""What an allocator's own wandering stays below, over a sweep of hundreds of calls."""
MAX_SHOWN_NODES = 8
SURE_GAIN = 1.1
"""Two processes that run one and the same file can differ by so much for as long as they live."""


@click.command("profile")
@model_argument
@data_option(required=False)
@source_options
@click.option("--batch-sizes", default=None, metavar="LIST", help="Such as 1,4,16. Default: 1,2,4,8,16,32.")
@click.option("--threads", default=None, metavar="LIST", help="Such as 1,2. Default: powers of two up to the cores.")
@click.option("--axis", "axes", multiple=True, metavar="NAME=SIZE", help="Size of a dynamic axis for made-up inputs.")
@click.option("--quick", is_flag=True, help="Fewer rounds and batch sizes: seconds instead of a minute.")
@click.option(
    "--audit",
    type=click.Choice(["short", "full"]),
    default="short",
    show_default=True,
    help="How hard to look for answers that depend on the batch: for seconds, or for up to two minutes a variant.",
)
@click.option(
    "--against", multiple=True, metavar="MODEL", help="Measure another model beside it, in turns; can be repeated."
)
@click.option("--report", default=None, metavar="FILE", help="Also write an HTML page with plots.")
@json_option
def command(
    model: str,
    *,
    data: str | None,
    weights: str,
    trust_pickle: bool,
    batch_sizes: str | None,
    threads: str | None,
    axes: tuple[str, ...],
    quick: bool,
    audit: str,
    against: tuple[str, ...],
    report: str | None,
    as_json: bool,
) -> None:
    """Measure MODEL in fresh processes: latency, throughput, memory, cold start, same answer.

    MODEL is a model file (ONNX, ORT, .pt2, TorchScript, OpenVINO, LiteRT, ExecuTorch), package.module:factory
    (PyTorch, needs --data), or a bundle: then all its variants.

    \b
    Examples:
      forwardpass profile model.onnx --quick
      forwardpass profile model.onnx --data samples.npz --audit full
      forwardpass profile old-bundle --against new-bundle
      forwardpass profile shop.models:build --weights w.safetensors --data samples.npz --report profile.html
    """
    from forwardpass.wiring import profile_model

    settings = profile_settings(
        quick=quick,
        batch_sizes=comma_separated_counts("--batch-sizes", batch_sizes),
        thread_counts=comma_separated_counts("--threads", threads),
    )
    settings = settings.with_operators(QUICK_TRACE_S if quick else TRACE_S)
    if not quick:
        settings = settings.with_start_trials()
    if audit == "full":
        settings = settings.with_full_audit()
    if report is not None:
        check_writable(Path(report), option="--report")
    with shown_progress() as progress:
        result = profile_model(
            model,
            against=against,
            data=data,
            weights=weights,
            axis_sizes=_axis_sizes(axes),
            settings=settings,
            trust_pickle=trust_pickle,
            progress=progress,
        )
    if report is not None:
        from forwardpass.profile.page import render_profile_page

        write_text(Path(report), render_profile_page(result.profiles, result.machine, Path(model).name))
    if as_json:
        echo_json({"model": result.model, "machine": result.machine, "profiles": result.profiles})
        return
    click.echo(f"{model} on {result.machine.cpu}, {result.machine.num_cores} cores")
    for profile in result.profiles:
        _echo_profile(profile)
    if len(result.profiles) > 1:
        _echo_comparison(result.profiles[0], result.profiles[1:])
    if report is not None:
        click.echo(f"\nreport: {report}")


def _axis_sizes(axes: tuple[str, ...]) -> dict[str, int]:
    sizes = {}
    for axis in axes:
        name, _, size = axis.partition("=")
        if not name or not (size.isascii() and size.isdigit() and int(size) > 0):
            raise InvalidOption(option="--axis", value=axis, expected="a name and a size, such as sequence=32")
        sizes[name] = int(size)
    return sizes


def _echo_profile(profile: VariantProfile) -> None:
    heading(f"{profile.variant} ({profile.runtime} {profile.runtime_version})")
    header = ("threads", "batch", "p50", "p95", "p99", "CPU p50", "rows/s", "")
    knees = [profile.knee(num_threads) for num_threads in profile.thread_counts]
    rows = [
        [
            str(cell.num_threads),
            str(cell.batch_size),
            *(format_measurement(value) for value in (cell.p50_s, cell.p95_s, cell.p99_s, cell.cpu_p50_s)),
            f"{cell.rows_per_s.value:,.0f}",
            "knee" if cell in knees else "",
        ]
        for cell in profile.cells
    ]
    echo_table(rows, header=header, right=range(len(header) - 1))
    for skipped in profile.skipped:
        click.echo(f"not measured: {skipped.num_threads} threads, batch {skipped.batch_size}: {skipped.reason}")
    for found in profile.operators:
        _echo_operators(found)
    start = profile.cold_start
    named = (("start", start.start_s), ("import", start.import_s), ("load", start.load_s))
    phases = (*named, ("first run", start.first_run_s))
    listed = ", ".join(f"{name} {format_measurement(value)}" for name, value in phases)
    peak, added = profile.memory.peak_bytes.value, profile.memory.added_bytes.value
    click.echo()
    echo_table(
        [
            ["cold start", f"{format_measurement(start.total_s)} ({listed})"],
            *([["  to cut it", "measured without --quick"]] if profile.starts is None else []),
            ["peak memory", f"{format_bytes(peak)}, {format_bytes(added)} of it the model's"],
            ["  over time", _memory_over_time(profile)],
            ["file", format_bytes(profile.file_bytes) if profile.file_bytes is not None else "none of its own"],
            *_same_answer_rows(profile.invariance),
        ]
    )
    if profile.starts is not None:
        _echo_starts(profile.starts)


def _echo_starts(found: StartStudy) -> None:
    """Print the ways to a shorter cold start, the one that saves most first, and which to take."""
    click.echo(f"\nhow to cut the cold start (first import to first answer: {format_measurement(found.as_it_is_s)})")
    rows = [_start_row(trial) for trial in found.ordered]
    echo_table(rows, header=("  way", "takes", "saves", "a call then", "answers", ""), right=(1, 2, 3))
    for trial in found.ordered:
        if trial.failure:
            click.echo(f"  {trial.what}: {trial.failure}")
    best = found.best
    if best is not None:
        click.echo(f"  take: {best.what}: {best.how}")
    if found.note:
        click.echo(f"  {found.note}")


def _start_row(trial: StartTrial) -> list[str]:
    if trial.own_s is None or trial.saved_s is None or trial.slowdown is None:
        return [f"  {trial.what}", "", "", "", "", trial.advice.value]
    return [
        f"  {trial.what}",
        format_measurement(trial.own_s),
        format_measurement(trial.saved_s),
        f"{format_ratio(trial.slowdown.value)} as long",
        "same bytes" if trial.is_same_answer else "other bytes",
        trial.advice.value,
    ]


def _echo_comparison(baseline: VariantProfile, others: Sequence[VariantProfile]) -> None:
    """Print how many times faster the others are, from rounds that ran in turns."""
    heading(f"against {baseline.variant}, paired rounds")
    rows = []
    for other in others:
        for cell in other.cells:
            if baseline.find(cell.num_threads, cell.batch_size) is None:
                continue
            ratio = speedup(other, baseline, num_threads=cell.num_threads, batch_size=cell.batch_size)
            low, high = format_ratio(ratio.interval.low), format_ratio(ratio.interval.high)
            is_faster, is_slower = ratio.interval.low > SURE_GAIN, ratio.interval.high < 1 / SURE_GAIN
            word = "faster" if is_faster else "slower" if is_slower else "no sure difference"
            count = (str(cell.num_threads), str(cell.batch_size))
            rows.append([other.variant, *count, format_ratio(ratio.value), f"{low} to {high}", word])
    echo_table(rows, header=("variant", "threads", "batch", "as fast", "95 % interval", ""), right=(1, 2, 3, 4))


def _echo_operators(found: OperatorBreakdown) -> None:
    """Print the operators that cost most, and the dearest nodes with how near they come to the roof."""
    click.echo(f"\nwhere the time goes, batch {found.batch_size} ({format_seconds(found.total_s)} with the trace on)")
    listed = ", ".join(f"{cost.operator} {cost.share:.0%} ({cost.num_nodes})" for cost in found.operators[:5])
    click.echo(f"  {listed}")
    rows = [
        [
            f"  {node.name}",
            node.operator,
            format_seconds(node.p50_s),
            f"{node.share:.0%}",
            f"{node.flops / node.p50_s / 1e9:.0f} Gflop/s" if node.flops and node.p50_s else "",
            f"{node.share_of_roof:.0%} of the roof",
        ]
        for node in found.nodes[:MAX_SHOWN_NODES]
    ]
    echo_table(rows, right=(2, 3, 4, 5))
    roof = found.roof
    click.echo(f"  roof: {roof.flops_per_s / 1e9:.0f} Gflop/s in float32, {format_bytes(roof.bytes_per_s)}/s of memory")


def _memory_over_time(profile: VariantProfile) -> str:
    growth = profile.growth_bytes_per_call
    sizes = [rss for cell in profile.cells for rss in cell.round_rss_bytes]
    if growth >= LEAK_BYTES_PER_CALL:
        return f"grows by {format_bytes(growth)} a call: that will not end well"
    return f"settles; at most {format_bytes(max(sizes))} in the sweep" if sizes else "not seen"


def _same_answer_rows(found: InvarianceVerdict) -> list[list[str]]:
    from forwardpass.profile import words

    rows = [
        ["same answer", f"{found.verdict.value}: {words.describe_batches(found)}"],
        ["", words.describe_comparisons(found)],
        ["  threads", words.describe_threads(found)],
        ["  fresh process", words.describe_processes(found)],
    ]
    if found.padding is not None:
        rows.append(["  padding", words.describe_padding(found)])
    return [*rows, *(["  not covered" if number == 0 else "", gap] for number, gap in enumerate(found.gaps))]
