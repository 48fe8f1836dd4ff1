"""What is asked of each server, and how the numbers come about: each is an observation of one case in one round."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.peers.load import Array, Load, Outcome, poisson_schedule
from benchmarks.peers.serving import RunningServer
from benchmarks.peers.workloads import Workload

__all__ = [
    "Observation",
    "Plan",
    "ask_closed_loop",
    "ask_goodput",
    "ask_idle",
    "ask_in_time",
    "ask_overload",
    "find_capacity",
]

KEPT_SHARE = 0.99
"""A rate is within the target if so many of the requests that were offered are answered in time."""
PATIENCE = 20
"""Clients hang up after so many times the target."""
OVERLOAD = 2.0
CALM = 0.5
FIRST_SHARE = 0.7
STEP_UP = 1.3
STEP_DOWN = 0.6
MAX_PROBE = 3.0
SETTLE_LIMIT_S = 20.0
NUM_SETTLED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured."""

    num_rounds: int = 3
    connections: tuple[int, ...] = (1, 8, 32, 64)
    warm_up_s: float = 1.0
    closed_s: float = 3.0
    tune_s: float = 2.0
    probe_s: float = 4.0
    min_probe_requests: int = 500
    """A slow server is probed for longer, up to `MAX_PROBE` times: one in a hundred of few requests is chance."""
    num_probes: int = 7
    in_time_s: float = 15.0
    """A probe of the capacity sees a few hundred requests, and one in a hundred of these is chance: at the same rates
    for everybody, with the same arrivals, more are seen."""
    goodput_s: float = 5.0
    rates: tuple[float, ...] = (0.5, 0.8, 1.2, 2.0)
    """Offered, in capacities of forwardpass."""
    calm_s: float = 6.0
    """How long is watched whether a server comes back after overload."""
    idle_s: float = 5.0

    @classmethod
    def quick(cls) -> Plan:
        """Return a plan for provisional numbers."""
        return cls(
            num_rounds=1,
            warm_up_s=0.5,
            closed_s=1.5,
            tune_s=1.0,
            probe_s=2.0,
            min_probe_requests=500,
            num_probes=6,
            in_time_s=8.0,
            goodput_s=2.5,
            calm_s=4.0,
            idle_s=2.0,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One number of one server in one round; None where there is none, as with refusals of a server that has none."""

    question: str
    server: str
    case: str
    value: float | None


Note = Callable[[str, str, float | None], None]
"""Takes an observation of the server under test: question, case, value."""


def ask_closed_loop(load: Load, plan: Plan, protocol: str, note: Note) -> float:
    """Note rates and latencies for every number of connections; return the best rate."""
    best = 0.0
    for num_connections in plan.connections:
        outcome = load.closed(num_connections, plan.closed_s, warm_up_s=plan.warm_up_s)
        note("generator", "CPU in closed loop, %", _cpu(outcome, plan.closed_s + plan.warm_up_s))
        latencies_s = outcome.latencies_s[outcome.is_ok]
        rate = len(latencies_s) / plan.closed_s
        case = f"{protocol}, {num_connections}"
        note("closed loop, requests/s", case, rate)
        note("closed loop, p50 ms", case, _percentile_ms(latencies_s, 50))
        note("closed loop, p99 ms", case, _percentile_ms(latencies_s, 99))
        best = max(best, rate)
    return best


def ask_idle(server: RunningServer, plan: Plan, note: Note) -> None:
    """Note what the server costs while nobody asks, and how quiet the machine was otherwise."""
    own, of_others = server.idle_cpu(plan.idle_s)
    note("idle", "CPU, % of a core", 100 * own)
    note("machine", "CPU that others used meanwhile, % of a core", 100 * of_others)
    note("idle", "memory, MB", server.memory_bytes() / 1e6)


def find_capacity(load: Load, workload: Workload, plan: Plan, *, guess: float, seed: int) -> float:
    """Return the largest Poisson rate that was held: at least 99 % of those offered were answered in time.

    A probe that fails is repeated once, as a machine that others use, too, stumbles now and then.
    """
    generator = np.random.default_rng(seed)

    def is_held(rate: float) -> bool:
        seconds = min(max(plan.probe_s, plan.min_probe_requests / rate), MAX_PROBE * plan.probe_s)
        schedule = poisson_schedule(rate, seconds, generator)
        outcome = load.open(schedule, timeout_s=PATIENCE * workload.slo_s)
        settle(load, workload)
        return outcome.share_within(workload.slo_s) >= KEPT_SHARE

    held, missed, rate = 0.0, math.inf, FIRST_SHARE * guess
    for _ in range(plan.num_probes):
        if is_held(rate) or is_held(rate):
            held = rate
            rate = rate * STEP_UP if math.isinf(missed) else math.sqrt(held * missed)
        else:
            missed = rate
            rate = rate * STEP_DOWN if held == 0 else math.sqrt(held * missed)
    return held


def ask_in_time(load: Load, workload: Workload, plan: Plan, *, limit: float, seed: int, note: Note) -> None:
    """Note how many of those offered are answered in time at shares of what the model allows, `limit` rows/s."""
    for share in workload.limit_shares:
        generator = np.random.default_rng([seed, round(1000 * share)])
        outcome = load.open(
            poisson_schedule(share * limit, plan.in_time_s, generator), timeout_s=PATIENCE * workload.slo_s
        )
        note("in time of those offered, %", f"{share:g} of the limit", 100 * outcome.share_within(workload.slo_s))
        settle(load, workload)


def ask_goodput(load: Load, workload: Workload, plan: Plan, *, capacity: float, seed: int, note: Note) -> None:
    """Note how many answers per second come in time at shares and multiples of forwardpass's capacity."""
    for times in plan.rates:
        generator = np.random.default_rng([seed, round(100 * times)])
        schedule = poisson_schedule(times * capacity, plan.goodput_s, generator)
        outcome = load.open(schedule, timeout_s=PATIENCE * workload.slo_s)
        note("generator", "CPU in open loop, %", _cpu(outcome, plan.goodput_s))
        note("generator", "lag p99 in open loop, ms", 1e3 * outcome.lag_p99_s)
        note("goodput, answers in time/s", f"{times:g} x", _goodput(outcome, workload, plan.goodput_s))
        settle(load, workload)


def ask_overload(load: Load, workload: Workload, plan: Plan, *, capacity: float, seed: int, note: Note) -> None:
    """Offer twice the server's own capacity, then half of it, and note what came of both."""
    generator = np.random.default_rng([seed, 7])
    storm = poisson_schedule(OVERLOAD * capacity, plan.goodput_s, generator)
    calm = poisson_schedule(CALM * capacity, plan.calm_s, generator, start_s=plan.goodput_s)
    whole = load.open(np.concatenate([storm, calm]), timeout_s=PATIENCE * workload.slo_s)
    during = whole.before(plan.goodput_s)
    question = "twice its own capacity"
    note(question, "offered/s", len(storm) / plan.goodput_s)
    note(question, "in time/s", _goodput(during, workload, plan.goodput_s))
    num_late = int((during.is_ok & ~during.is_within(workload.slo_s)).sum())
    note(question, "answered, but late, %", 100 * num_late / max(len(during.records), 1))
    note(question, "share of capacity in time, %", 100 * _goodput(during, workload, plan.goodput_s) / capacity)
    refusals_s = during.refusal_latencies_s
    note(question, "refused, %", 100 * len(refusals_s) / max(len(during.records), 1))
    note(question, "refusal p99, ms", _percentile_ms(refusals_s, 99) if len(refusals_s) else None)
    note(question, "back to normal, s", recovery_s(whole.after(plan.goodput_s), workload, plan.goodput_s))
    settle(load, workload)


def recovery_s(calm: Outcome, workload: Workload, start_s: float) -> float | None:
    """Return how long after `start_s` it takes until 99 % of all that is due from then on is answered in time."""
    is_late = ~calm.is_within(workload.slo_s)
    num_left = np.arange(len(is_late), 0, -1)
    late_share = np.cumsum(is_late[::-1])[::-1] / num_left
    is_normal = late_share <= 1 - KEPT_SHARE
    if not len(is_normal) or not is_normal.any():
        return None
    first = int(np.argmax(is_normal))
    return float(calm.records["due_s"][first] - start_s) if first else 0.0


def settle(load: Load, workload: Workload) -> None:
    """Wait until a lone client is answered in time again, so that one load does not spoil the next."""
    due_s = time.monotonic() + SETTLE_LIMIT_S
    while time.monotonic() < due_s:
        outcome = load.closed(1, NUM_SETTLED * workload.slo_s, warm_up_s=0.0)
        if len(outcome.records) and outcome.is_ok.all() and np.median(outcome.latencies_s) < workload.slo_s:
            return
        time.sleep(workload.slo_s)


def _goodput(outcome: Outcome, workload: Workload, seconds: float) -> float:
    return float(outcome.is_within(workload.slo_s).sum()) / seconds


def _percentile_ms(latencies_s: Array, percent: float) -> float | None:
    return 1e3 * float(np.percentile(latencies_s, percent)) if len(latencies_s) else None


def _cpu(outcome: Outcome, seconds: float) -> float:
    """Return how busy the generator was, in percent of a core: it must not be what limits a server."""
    return 100 * outcome.generator_cpu_s / seconds
