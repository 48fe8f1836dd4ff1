"""`forwardpass load`: what a running server holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from forwardpass.cli.options import json_option
from forwardpass.cli.progress import shown_progress
from forwardpass.cli.rendering import echo_json, echo_table, heading, verdict_text
from forwardpass.core.checklist import Verdict
from forwardpass.core.slo import Slo
from forwardpass.errors import InvalidOption
from forwardpass.report.format import format_count, format_measurement, format_seconds, format_share
from forwardpass.report.writing import check_writable, write_text

if TYPE_CHECKING:
    from forwardpass.loadtest import CapacityReport, LoadResult, LoadSummary, TargetSettings

__all__ = ["command"]

_TARGET_MISSED = 1
_SCENARIOS = ("single-stream", "server", "offline")


@click.command("load")
@click.argument("url")
@click.option("--capacity", is_flag=True, help="Search for the largest rate within --slo, then load beyond it.")
@click.option("--slo", default=None, metavar="p99=100ms", help="Target: the share of all offered requests in time.")
@click.option("--rate", type=float, default=None, help="Requests per second, in an open loop.")
@click.option(
    "--arrivals",
    type=click.Choice(["poisson", "constant", "bursts"]),
    default="poisson",
    show_default=True,
    help="How they come; bursts: all of a second in its first fifth.",
)
@click.option("--trace", type=click.Path(path_type=Path), metavar="FILE", help="Recorded times in seconds, one a line.")
@click.option(
    "--scenario",
    type=click.Choice(_SCENARIOS),
    default=None,
    help="Default: server with --rate or --trace, offline with --connections, else single-stream.",
)
@click.option(
    "--connections", type=int, default=None, help="Of the offline scenario: as fast as they can. [default: 32]"
)
@click.option("--duration", type=float, default=10.0, show_default=True, help="Seconds that are measured.")
@click.option("--warm-up", type=float, default=1.0, show_default=True, help="Seconds before, not counted.")
@click.option("--requests", type=int, default=None, help="At most so many.")
@click.option("--timeout", type=float, default=10.0, show_default=True, help="Seconds after which one has failed.")
@click.option("--max-connections", type=int, default=512, show_default=True, help="Bound of the open loop's pool.")
@click.option("--budget", type=float, default=120.0, show_default=True, help="Seconds for --capacity altogether.")
@click.option("--goodput/--no-goodput", default=True, help="After --capacity: 0.5, 0.8, 1.2 and 2 times as much.")
@click.option("--model", default=None, metavar="NAME", help="Default: the only one, or the one in the URL.")
@click.option("--data", default=None, metavar="SAMPLES", help="Inputs: .npz, folder or package.module:function.")
@click.option("--rows", type=click.IntRange(1, 100_000), default=1, show_default=True, help="In one request.")
@click.option("--path", default=None, metavar="/predict", help="Endpoint that is not of the Open Inference Protocol.")
@click.option("--template", type=click.Path(path_type=Path), metavar="FILE", help="Its JSON body, with placeholders.")
@click.option(
    "--status", "statuses", default=None, metavar="LIST", help="Statuses of a good answer. [default: 200-299]"
)
@click.option("--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="Sent with every request.")
@click.option("--key", default=None, envvar="FORWARDPASS_KEY", help="API key, as Authorization: Bearer KEY.")
@click.option("--deadline", type=float, default=None, metavar="MS", help="Send X-Request-Timeout-Ms.")
@click.option("--ca", type=click.Path(path_type=Path), metavar="PEM", help="Authorities to trust for HTTPS.")
@click.option("--seed", type=int, default=20261101, show_default=True, help="Of the arrivals and made-up inputs.")
@click.option(
    "--report",
    "--html",
    "report",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also write an HTML page with plots.",
)
@json_option
def command(
    url: str,
    *,
    capacity: bool,
    slo: str | None,
    rate: float | None,
    arrivals: str,
    trace: Path | None,
    scenario: str | None,
    connections: int | None,
    duration: float,
    warm_up: float,
    requests: int | None,
    timeout: float,
    max_connections: int,
    budget: float,
    goodput: bool,
    seed: int,
    report: Path | None,
    as_json: bool,
    model: str | None,
    data: str | None,
    rows: int,
    path: str | None,
    template: Path | None,
    statuses: str | None,
    headers: tuple[str, ...],
    key: str | None,
    deadline: float | None,
    ca: Path | None,
) -> int:
    """Load the server at URL: an Open Inference Protocol server, or any JSON endpoint with --path and --template.

    Latency is counted from when a request was due, not from when it could be sent.

    \b
    Examples:
      forwardpass load http://127.0.0.1:8000
      forwardpass load http://127.0.0.1:8000 --rate 200 --slo p99=50ms --report load.html
      forwardpass load http://127.0.0.1:8000 --capacity --slo p99=50ms
      forwardpass load http://127.0.0.1:8080 --path /predict --template body.json --connections 8
    """
    from forwardpass.loadtest import Arrivals, LoadSettings, Scenario, TargetSettings
    from forwardpass.wiring import find_capacity, load_test

    target = TargetSettings(
        url=url,
        model=model,
        data=data,
        num_rows=rows,
        template=template,
        path=path,
        headers=_headers(headers, key),
        deadline_s=_deadline_s(deadline),
        statuses=_statuses(statuses),
        certificates=ca,
    )
    chosen = Scenario.SINGLE_STREAM if capacity else Scenario(_scenario(scenario, rate, trace, connections))
    _check_combination(target, chosen.value, capacity, slo, rate, trace, connections, scenario)
    settings = LoadSettings(
        scenario=chosen,
        rate_per_s=rate,
        arrivals=Arrivals(arrivals),
        trace=trace,
        duration_s=duration,
        warm_up_s=warm_up,
        timeout_s=timeout,
        max_connections=max_connections,
        slo=Slo.parse(slo) if slo is not None else None,
        seed=seed,
        **({"max_requests": requests} if requests is not None else {}),
        **({"num_connections": connections} if connections is not None else {}),
    )
    if report is not None:
        check_writable(report, option="--report")
    with shown_progress() as progress:
        if capacity:
            assert settings.slo is not None, "checked above"
            result = find_capacity(
                target, settings.slo, settings=settings, budget_s=budget, with_goodput=goodput, progress=progress
            )
        else:
            result = load_test(target, settings=settings, progress=progress)
    if report is not None:
        from forwardpass.loadtest.page import render_load_page

        write_text(report, render_load_page(result))
    if as_json:
        echo_json({"load": result})
    else:
        _echo(result, report)
    return _TARGET_MISSED if result.is_met is False else 0


def _scenario(given: str | None, rate: float | None, trace: Path | None, connections: int | None) -> str:
    if given is not None:
        return given
    if rate is not None or trace is not None:
        return "server"
    return "offline" if connections is not None else "single-stream"


def _check_combination(
    target: TargetSettings,
    scenario: str,
    capacity: bool,
    slo: str | None,
    rate: float | None,
    trace: Path | None,
    connections: int | None,
    given: str | None,
) -> None:
    """Refuse words that would be passed over in silence."""
    if capacity and slo is None:
        raise InvalidOption(option="--slo", value="", expected="a target to search within, such as p99=100ms")
    if capacity and (rate is not None or trace is not None or connections is not None or given is not None):
        raise InvalidOption(option="--capacity", value="", expected="no --rate, --trace, --connections or --scenario")
    if rate is not None and trace is not None:
        raise InvalidOption(option="--trace", value=str(trace), expected="either --rate or --trace")
    if scenario != "server" and not capacity and (rate is not None or trace is not None):
        raise InvalidOption(option="--scenario", value=scenario, expected="server, with --rate or --trace")
    if scenario != "offline" and connections is not None:
        raise InvalidOption(option="--connections", value=str(connections), expected="the offline scenario")
    if target.template is not None and target.path is None:
        raise InvalidOption(option="--path", value="", expected="the path that takes the template, such as /predict")
    if target.path is not None and target.model is not None:
        raise InvalidOption(option="--model", value=target.model, expected="no --path: that is another kind of server")


def _headers(given: tuple[str, ...], key: str | None) -> tuple[tuple[str, str], ...]:
    headers = []
    for header in given:
        name, colon, value = header.partition(":")
        if not colon:
            raise InvalidOption(option="--header", value=header[:20], expected="a name and a value, 'Name: value'")
        headers.append((name.strip(), value.strip()))
    if key:
        headers.append(("Authorization", f"Bearer {key}"))
    return tuple(headers)


def _deadline_s(milliseconds: float | None) -> float | None:
    if milliseconds is not None and not 1 <= milliseconds <= 1e8:
        raise InvalidOption(option="--deadline", value=f"{milliseconds:g}", expected="1 or more milliseconds")
    return milliseconds / 1e3 if milliseconds is not None else None


def _statuses(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and 200 <= int(part) <= 599 for part in parts):
        raise InvalidOption(option="--status", value=text, expected="statuses such as 200,202")
    return tuple(int(part) for part in parts)


# --- on the terminal -----------------------------------------------------------------------------------------------


def _echo(result: LoadResult, page: Path | None) -> None:
    click.echo(result.target)
    click.echo(result.load)
    click.echo()
    if result.summary is not None:
        _echo_summary(result.summary, result.slo, result.is_met)
    if result.capacity is not None:
        _echo_capacity(result.capacity, result.slo or "", result.is_met)
    if page is not None:
        click.echo(f"\nreport: {page}")


def _echo_summary(summary: LoadSummary, slo: str | None, is_met: bool | None) -> None:
    latencies = (("p50", summary.p50_s), ("p90", summary.p90_s), ("p95", summary.p95_s), ("p99", summary.p99_s))
    rows = [[f"latency {name}", format_measurement(value) if value is not None else "–"] for name, value in latencies]
    rows.append(["latency, greatest", format_seconds(summary.max_s) if summary.max_s is not None else "–"])
    rows.append(["offered", f"{format_count(summary.offered_per_s)}/s, {summary.num_offered:,} requests"])
    rows.append(["answered", f"{format_count(summary.throughput_per_s)}/s, {summary.num_succeeded:,} good answers"])
    rows += [["failed", f"{failure.num_requests:,}: {failure.what}"] for failure in summary.failures]
    if summary.share_in_time is not None:
        rows.append(["in time", f"{format_share(summary.share_in_time)} of the offered, goodput {_rate(summary)}"])
        rows.append(["target", f"{slo}  {verdict_text(Verdict.MET if is_met else Verdict.MISSED)}"])
    report = summary.generator
    lag = f"sent {format_seconds(report.lag_p50_s)} (p50), {format_seconds(report.lag_p99_s)} (p99) late; "
    limit = f", limit about {report.limit_per_s:,.0f}/s" if report.limit_per_s is not None else ""
    connections = f"{report.most_connections} connection{'s' if report.most_connections != 1 else ''}"
    rows.append(
        ["generator", f"{lag if report.has_schedule else ''}{report.cpu_share:.0%} of a core{limit}; {connections}"]
    )
    echo_table(rows)
    for warning in report.warnings:
        click.echo(f"\nWarning: {warning}")


def _rate(summary: LoadSummary) -> str:
    return f"{format_count(summary.goodput_per_s or 0.0)}/s"


def _echo_capacity(report: CapacityReport, slo: str, is_met: bool | None) -> None:
    from forwardpass.loadtest.search import format_interval

    found = report.capacity
    kept, missed = (
        f"{format_count(rate)}/s" if rate else "none for sure" for rate in (found.kept_per_s, found.missed_per_s)
    )
    more = "at least " if found.is_lower_bound else ""
    rows = [["capacity", f"none was found within {slo}"]]
    if found.rate_per_s:
        rows = [
            ["capacity", f"{more}{format_count(found.rate_per_s)}/s within {slo}"],
            ["interval", format_interval(found)],
            ["tried", f"always kept: {kept}; never kept: {missed}"],
        ]
    rows += [
        ["trials", f"{len(found.trials)} of {report.trial_s:g} s or more, Poisson arrivals"],
    ]
    if report.lone_p50_s is not None:
        rows.append(["alone", f"{format_seconds(report.lone_p50_s)} (p50), one request at a time"])
    if report.recovery is not None:
        back = report.recovery
        seconds = format_seconds(back.seconds) if back.seconds is not None else f"more than {back.watched_s:g} s"
        rows.append(["recovery", f"{seconds} after {back.overload_s:g} s at {back.overload:g} times the capacity"])
    rows.append(["target", f"{slo}  {verdict_text(Verdict.MET if is_met else Verdict.MISSED)}"])
    echo_table(rows)
    if report.goodput:
        heading("Below and beyond the capacity")
        header = ("load", "offered", "answered", "in time", "share", "p50", "p99", "failures")
        lines = [
            [
                f"{point.load:g}x",
                f"{format_count(point.offered_per_s)}/s",
                f"{format_count(point.throughput_per_s)}/s",
                f"{format_count(point.goodput_per_s)}/s",
                format_share(point.share_in_time),
                format_seconds(point.p50_s) if point.p50_s is not None else "–",
                format_seconds(point.p99_s) if point.p99_s is not None else "–",
                ", ".join(f"{failure.num_requests:,} {failure.what}" for failure in point.failures) or "–",
            ]
            for point in report.goodput
        ]
        echo_table(lines, header=header, right=range(7))
    for note in report.notes:
        click.echo(f"\n{note}")
    for warning in report.at_capacity.generator.warnings if report.at_capacity is not None else ():
        click.echo(f"\nWarning: {warning}")
