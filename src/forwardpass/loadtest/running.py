"""The shell: runs the generator as the scenario or the search says, and hands its records to the statistics."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from forwardpass.core.measurement import Machine
from forwardpass.core.protocols import Progress
from forwardpass.core.samples import Samples
from forwardpass.core.slo import Slo
from forwardpass.errors import InvalidOption, SourceNotFound
from forwardpass.loadtest.generator import Generator
from forwardpass.loadtest.messages import Ran
from forwardpass.loadtest.results import CapacityReport, GoodputPoint, LoadResult, Recovery
from forwardpass.loadtest.schedules import Arrivals, Phase, Schedule, arrival_times, joined_phases, parse_trace
from forwardpass.loadtest.search import LONGEST_TRIAL_S, CapacitySearch, Trial, trial_duration_s
from forwardpass.loadtest.settings import MAX_BUDGET_S, LoadSettings, Scenario, TargetSettings, check_bounds
from forwardpass.loadtest.summary import BUSY_SHARE, LoadSummary, Requests, recovery_s, summarise
from forwardpass.loadtest.target import prepare_requests

__all__ = ["find_capacity", "run_load"]

GOODPUT_LOADS = (0.5, 0.8, 1.2, 2.0)
MAX_RATE_PER_S = 50_000.0
TRIAL_WARM_UP_S = 0.5
LONE_S = 1.5
SETTLE_S = 0.3
MAX_SETTLE_S = 15.0
RECOVERY_S = 5.0
RECOVERY_LOAD = 0.5
LATE_GENERATOR_SHARE = 0.2
"""Of the limit: a generator that is later than that can fail a trial by itself."""


def run_load(
    target: TargetSettings, settings: LoadSettings, *, samples: Samples | None, machine: Machine, progress: Progress
) -> LoadResult:
    """Run one scenario.

    Raises:
        ServerUnreachable: the server is not there.
        ServerFailed: it does not answer a request as expected.
        InvalidOption: the options do not fit each other.
        ChildFailed: the generator's process ended.
    """
    begun_s = time.monotonic()
    schedule = _schedule(settings)
    progress(f"asking {target.url}", done=0.0)
    prepared = prepare_requests(
        target,
        samples,
        seed=settings.seed,
        timeout_s=settings.timeout_s,
        max_connections=settings.max_connections,
    )
    total_s = float(schedule[-1]) if schedule is not None else settings.duration_s + settings.warm_up_s

    def on_time(since_s: float) -> None:
        progress(f"{settings.scenario.value}, {since_s:.0f} of {total_s:.0f} s", done=min(since_s / total_s, 1.0))

    with Generator(prepared.prepare) as generator:
        if schedule is not None:
            ran = generator.run_open(schedule, on_time=on_time)
        else:
            num_connections = 1 if settings.scenario is Scenario.SINGLE_STREAM else settings.num_connections
            ran = generator.run_closed(
                num_connections=num_connections,
                duration_s=total_s,
                max_requests=settings.max_requests,
                on_time=on_time,
            )
    summary = _summarise(ran, settings)
    return LoadResult(
        target=prepared.description,
        load=_words(settings, len(schedule) if schedule is not None else 0),
        slo=str(settings.slo) if settings.slo is not None else None,
        is_met=_is_met(summary.share_in_time, settings.slo),
        summary=summary,
        capacity=None,
        took_s=time.monotonic() - begun_s,
        machine=machine,
    )


def find_capacity(
    target: TargetSettings,
    settings: LoadSettings,
    slo: Slo,
    *,
    budget_s: float,
    with_goodput: bool,
    samples: Samples | None,
    machine: Machine,
    progress: Progress,
) -> LoadResult:
    """Search for the largest Poisson rate at which enough of the offered requests succeed within the limit.

    Raises:
        ServerUnreachable: the server is not there.
        ServerFailed: it does not answer a request as expected.
        ChildFailed: the generator's process ended.
        InvalidOption: the budget leaves no time for a single trial.
    """
    check_bounds("--budget", budget_s, 1.0, MAX_BUDGET_S, "seconds")
    begun_s = time.monotonic()
    progress(f"asking {target.url}", done=0.0)
    timeout_s = min(settings.timeout_s, max(5 * slo.limit_s, 1.0))
    prepared = prepare_requests(
        target, samples, seed=settings.seed, timeout_s=timeout_s, max_connections=settings.max_connections
    )
    with Generator(prepared.prepare) as generator:
        hunt = _Hunt(
            generator,
            replace(settings, timeout_s=timeout_s),
            slo,
            begun_s=begun_s,
            budget_s=budget_s,
            progress=progress,
        )
        report = hunt.run(with_goodput=with_goodput)
    return LoadResult(
        target=prepared.description,
        load=f"search with Poisson arrivals, trials of {report.trial_s:g} s or more",
        slo=str(slo),
        is_met=report.capacity.rate_per_s > 0,
        summary=None,
        capacity=report,
        took_s=time.monotonic() - begun_s,
        machine=machine,
    )


class _Hunt:
    """One search, with what it needs at every step."""

    def __init__(
        self,
        generator: Generator,
        settings: LoadSettings,
        slo: Slo,
        *,
        begun_s: float,
        budget_s: float,
        progress: Progress,
    ) -> None:
        self._generator = generator
        self._settings = settings
        self._slo = slo
        self._begun_s = begun_s
        self._budget_s = budget_s
        self._due_s = begun_s + budget_s
        self._progress = progress
        self._seed = settings.seed
        self._lone_p50_s: float | None = None
        self._notes: list[str] = []

    def run(self, *, with_goodput: bool) -> CapacityReport:
        """Search, and then see what happens below and beyond."""
        required_share = self._slo.percent / 100
        self._show("one request at a time")
        lone = self._lone(LONE_S)
        self._lone_p50_s = lone.p50_s.value if lone.p50_s is not None else None
        search = CapacitySearch(
            start_per_s=0.5 / self._lone_p50_s if self._lone_p50_s else 1.0,
            max_per_s=MAX_RATE_PER_S,
            required_share=required_share,
        )
        at_capacity: dict[float, LoadSummary] = {}
        if lone.share_in_time is not None and lone.share_in_time >= required_share:
            reserved_s = self._goodput_s() if with_goodput else 0.0
            self._search(search, at_capacity, reserved_s)
        else:
            self._notes.append("One request at a time misses the target already; no rate can keep it.")
        capacity = search.capacity()
        if capacity.rate_per_s and self._duration_s(capacity.rate_per_s) >= LONGEST_TRIAL_S:
            number = round(capacity.rate_per_s * LONGEST_TRIAL_S)
            self._notes.append(f"At this rate a trial holds only {number} requests: the shares are coarse.")
        goodput: Sequence[GoodputPoint] = ()
        recovery = None
        if with_goodput and capacity.rate_per_s:
            goodput, recovery = self._beyond(capacity.rate_per_s)
        return CapacityReport(
            capacity=capacity,
            lone_p50_s=self._lone_p50_s,
            trial_s=self._duration_s(MAX_RATE_PER_S),
            at_capacity=at_capacity.get(capacity.rate_per_s),
            goodput=tuple(goodput),
            recovery=recovery,
            notes=tuple(self._notes),
        )

    def _search(self, search: CapacitySearch, at_capacity: dict[float, LoadSummary], reserved_s: float) -> None:
        while (rate_per_s := search.next_rate()) is not None:
            duration_s = trial_duration_s(rate_per_s, self._slo.limit_s, is_repetition=search.was_tried(rate_per_s))
            end_s = time.monotonic() + duration_s + self._settings.timeout_s / 2 + reserved_s
            if end_s > self._due_s:
                if not search.capacity().trials:
                    raise self._no_time_for_a_trial(end_s, reserved_s)
                self._notes.append("The budget ended the search; a larger --budget narrows the interval.")
                return
            self._show(f"trying {rate_per_s:.3g}/s")
            summary = self._trial(rate_per_s, duration_s)
            is_late = summary.generator.lag_p99_s > LATE_GENERATOR_SHARE * self._slo.limit_s
            trial = Trial(
                rate_per_s=rate_per_s,
                share_in_time=summary.share_in_time or 0.0,
                is_generator_limited=is_late or summary.generator.cpu_share > BUSY_SHARE,
            )
            search.record(trial)
            if search.is_kept(trial):
                at_capacity[rate_per_s] = summary
            else:
                self._settle()
        edge = search.capacity()
        if edge.is_lower_bound:
            self._notes.append("The generator, or its largest rate, was the limit; the server may hold more.")

    def _no_time_for_a_trial(self, end_s: float, reserved_s: float) -> InvalidOption:
        """Say what a first trial would take: without one, whether the target is held was not looked at."""
        least_s = math.ceil(end_s - self._begun_s) + 1
        beyond = f", {reserved_s:.0f} of them kept for the loads beyond it (--no-goodput)" if reserved_s else ""
        return InvalidOption(
            option="--budget",
            value=f"{self._budget_s:g}",
            expected=f"at least {least_s} seconds here: that is when a first trial could be over{beyond}",
        )

    def _beyond(self, capacity_per_s: float) -> tuple[Sequence[GoodputPoint], Recovery | None]:
        """Offer less and more than the capacity; after the last and greatest overload, watch the recovery."""
        points: list[GoodputPoint] = []
        recovery = None
        for load in GOODPUT_LOADS:
            rate_per_s = load * capacity_per_s
            duration_s = self._duration_s(rate_per_s)
            if time.monotonic() + duration_s > self._due_s:
                self._notes.append(f"The budget ended before {load:g} times the capacity was offered.")
                break
            self._show(f"goodput at {load:g} times the capacity, {rate_per_s:.3g}/s")
            phases = [Phase(rate_per_s=rate_per_s, duration_s=TRIAL_WARM_UP_S + duration_s)]
            is_last = load == GOODPUT_LOADS[-1]
            if is_last:
                phases.append(Phase(rate_per_s=RECOVERY_LOAD * capacity_per_s, duration_s=RECOVERY_S))
            ran = self._generator.run_open(joined_phases(tuple(phases), seed=self._next_seed()))
            everything = Requests.from_run(ran)
            summary = self._summarised(ran, everything, TRIAL_WARM_UP_S, TRIAL_WARM_UP_S + duration_s)
            points.append(_point(load, summary))
            if is_last:
                recovery = self._recovery(everything, points[0], capacity_per_s, TRIAL_WARM_UP_S + duration_s)
            if load > 1:
                self._settle()
        return points, recovery

    def _recovery(
        self, requests: Requests, calm: GoodputPoint, capacity_per_s: float, overload_end_s: float
    ) -> Recovery:
        normal_s = min(1.5 * (calm.p99_s or self._slo.limit_s), self._slo.limit_s)
        run_length = int(np.clip(RECOVERY_LOAD * capacity_per_s * RECOVERY_S / 10, 10, 500))
        return Recovery(
            overload=GOODPUT_LOADS[-1],
            overload_s=overload_end_s,
            load_after=RECOVERY_LOAD,
            seconds=recovery_s(
                requests,
                overload_end_s=overload_end_s,
                normal_s=normal_s,
                run_length=run_length,
                required_share=0.95,
            ),
            watched_s=RECOVERY_S,
            normal_s=normal_s,
        )

    def _trial(self, rate_per_s: float, duration_s: float) -> LoadSummary:
        phase = Phase(rate_per_s=rate_per_s, duration_s=TRIAL_WARM_UP_S + duration_s)
        ran = self._generator.run_open(arrival_times(phase, seed=self._next_seed()))
        return self._summarised(ran, Requests.from_run(ran), TRIAL_WARM_UP_S, TRIAL_WARM_UP_S + duration_s)

    def _lone(self, duration_s: float) -> LoadSummary:
        ran = self._generator.run_closed(num_connections=1, duration_s=duration_s, max_requests=10_000)
        requests = Requests.from_run(ran)
        return self._summarised(ran, requests, 0.0, float(requests.scheduled_s[-1]) + 1e-9)

    def _settle(self) -> None:
        """Wait until a lone request is as fast as before: what an overload leaves behind is not the next trial's."""
        self._show("waiting until the server has calmed down")
        until_s = time.monotonic() + MAX_SETTLE_S
        while time.monotonic() < until_s:
            lone = self._lone(SETTLE_S)
            if lone.p50_s is not None and lone.p50_s.value <= 2 * (self._lone_p50_s or 0.0):
                return

    def _summarised(self, ran: Ran, requests: Requests, begin_s: float, end_s: float) -> LoadSummary:
        return summarise(
            requests.between(begin_s, end_s),
            begin_s=begin_s,
            duration_s=end_s - begin_s,
            slo=self._slo,
            ran=ran,
            max_connections=self._settings.max_connections,
            with_intervals=False,
        )

    def _duration_s(self, rate_per_s: float) -> float:
        return trial_duration_s(rate_per_s, self._slo.limit_s)

    def _goodput_s(self) -> float:
        each_s = TRIAL_WARM_UP_S + self._duration_s(MAX_RATE_PER_S)
        return len(GOODPUT_LOADS) * each_s + RECOVERY_S + 2 * self._settings.timeout_s

    def _next_seed(self) -> int:
        self._seed += 2
        return self._seed

    def _show(self, text: str) -> None:
        spent = (time.monotonic() - self._begun_s) / max(self._due_s - self._begun_s, 1e-9)
        self._progress(text, done=min(spent, 1.0))


def _point(load: float, summary: LoadSummary) -> GoodputPoint:
    return GoodputPoint(
        load=load,
        offered_per_s=summary.offered_per_s,
        throughput_per_s=summary.throughput_per_s,
        goodput_per_s=summary.goodput_per_s or 0.0,
        share_in_time=summary.share_in_time or 0.0,
        p50_s=summary.p50_s.value if summary.p50_s is not None else None,
        p99_s=summary.p99_s.value if summary.p99_s is not None else None,
        failures=summary.failures,
        lag_p99_s=summary.generator.lag_p99_s,
    )


def _schedule(settings: LoadSettings) -> Schedule | None:
    """Return when requests are due; None for the scenarios in which answers say when."""
    if settings.scenario is not Scenario.SERVER:
        return None
    if settings.trace is not None:
        try:
            text = settings.trace.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise SourceNotFound(path=str(settings.trace), expected="a text file with one time a line") from error
        return parse_trace(text, origin=str(settings.trace))[: settings.max_requests]
    assert settings.rate_per_s is not None, "the settings were checked"
    phase = Phase(
        rate_per_s=settings.rate_per_s,
        duration_s=settings.warm_up_s + settings.duration_s,
        arrivals=settings.arrivals,
    )
    return arrival_times(phase, seed=settings.seed)[: settings.max_requests]


def _summarise(ran: Ran, settings: LoadSettings) -> LoadSummary:
    """Leave out the warm-up. A trace has none: its first request counts."""
    requests = Requests.from_run(ran)
    is_trace = settings.scenario is Scenario.SERVER and settings.trace is not None
    begin_s = 0.0 if is_trace else settings.warm_up_s
    measured = requests.between(begin_s, np.inf)
    if not len(measured):  # a limit of requests that the warm-up used up
        begin_s, measured = 0.0, requests
    last_s = float(measured.scheduled_s[-1]) if len(measured) else begin_s
    planned_s = settings.warm_up_s + settings.duration_s
    is_cut = is_trace or len(requests) >= settings.max_requests
    end_s = last_s if is_cut else max(planned_s, last_s)
    return summarise(
        measured,
        begin_s=begin_s,
        duration_s=max(end_s - begin_s, 1e-3),
        slo=settings.slo,
        ran=ran,
        max_connections=settings.max_connections if settings.scenario is Scenario.SERVER else None,
    )


def _is_met(share_in_time: float | None, slo: Slo | None) -> bool | None:
    return None if slo is None else share_in_time is not None and share_in_time >= slo.percent / 100


def _words(settings: LoadSettings, num_scheduled: int) -> str:
    if settings.scenario is Scenario.SINGLE_STREAM:
        return f"single stream, one request after another for {settings.duration_s:g} s"
    if settings.scenario is Scenario.OFFLINE:
        return f"offline, {settings.num_connections} connections for {settings.duration_s:g} s"
    if settings.trace is not None:
        return f"server, {num_scheduled:,} requests as recorded in {settings.trace.name}"
    names = {Arrivals.POISSON: "Poisson arrivals", Arrivals.CONSTANT: "constant gaps", Arrivals.BURSTS: "bursts"}
    return f"server, {names[settings.arrivals]} at {settings.rate_per_s:g}/s for {settings.duration_s:g} s"
