"""The arithmetic of the comparison with other servers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.peers.load import RECORD, Array, Outcome, poisson_schedule
from benchmarks.peers.questions import Observation, Plan, find_capacity, recovery_s
from benchmarks.peers.report import documents, table
from benchmarks.peers.workloads import WORKLOADS

MLP = WORKLOADS["mlp"]


def outcome(due_s: Array, latencies_s: Array, status: int = 200) -> Outcome:
    records = np.zeros(len(due_s), dtype=RECORD)
    records["due_s"], records["done_s"], records["status"] = due_s, due_s + latencies_s, status
    return Outcome(records=records, generator_cpu_s=0.0)


@dataclass
class ServerOfCapacity:
    """A load whose server answers in time up to a rate, and nobody in time above it."""

    capacity: float
    seconds: float
    offered: list[float] = field(default_factory=list)

    def open(self, schedule: Array, *, timeout_s: float) -> Outcome:
        rate = len(schedule) / self.seconds
        self.offered.append(rate)
        return outcome(schedule, np.full(len(schedule), 0.0 if rate <= self.capacity else timeout_s))

    def closed(self, num_connections: int, seconds: float, *, warm_up_s: float) -> Outcome:
        return outcome(np.zeros(1), np.zeros(1))


@given(capacity=st.floats(1_000, 10_000), share=st.floats(0.5, 4))
def test_the_capacity_is_found_from_any_guess_within_a_factor_of_four(capacity: float, share: float) -> None:
    plan = Plan(num_probes=12, probe_s=1.0)
    load = ServerOfCapacity(capacity, plan.probe_s)
    found = find_capacity(load, MLP, plan, guess=capacity * share, seed=0)  # type: ignore[arg-type]  # a fake
    assert found == pytest.approx(capacity, rel=0.15), "the rest is the chance in how many requests come in a second"


def test_a_server_that_is_never_in_time_has_no_capacity() -> None:
    load = ServerOfCapacity(0.0, 1.0)
    assert find_capacity(load, MLP, Plan(probe_s=1.0), guess=1_000, seed=0) == 0.0  # type: ignore[arg-type]  # a fake
    assert min(load.offered) < 100


def test_recovery_is_when_the_last_of_the_many_late_answers_was_due() -> None:
    due_s = np.arange(10.0, 14.0, 0.001)
    late = np.where(due_s < 11.5, 1.0, 0.0)
    assert recovery_s(outcome(due_s, late), MLP, 10.0) == pytest.approx(1.5, abs=0.05)
    assert recovery_s(outcome(due_s, np.zeros_like(due_s)), MLP, 10.0) == 0.0
    assert recovery_s(outcome(due_s, np.ones_like(due_s)), MLP, 10.0) is None
    assert recovery_s(outcome(due_s, np.zeros_like(due_s), status=503), MLP, 10.0) is None


def test_an_answer_counts_only_with_200_and_in_time() -> None:
    mixed = outcome(np.zeros(4), np.array([0.0, 0.01, 0.03, 1.0]))
    assert mixed.share_within(0.025) == 0.5
    assert outcome(np.zeros(4), np.zeros(4), status=429).share_within(0.025) == 0.0
    assert len(outcome(np.zeros(4), np.zeros(4), status=429).refusal_latencies_s) == 4


@given(rate=st.floats(0, 1_000), seconds=st.floats(0.1, 10), start_s=st.floats(0, 100))
def test_a_schedule_is_in_order_and_within_its_time(rate: float, seconds: float, start_s: float) -> None:
    due_s = poisson_schedule(rate, seconds, np.random.default_rng(0), start_s=start_s)
    assert (np.diff(due_s) >= 0).all()
    assert ((start_s <= due_s) & (due_s <= start_s + seconds)).all()
    assert len(due_s) == pytest.approx(rate * seconds, abs=6 * np.sqrt(rate * seconds) + 3)


def test_rounds_are_put_together_and_what_has_no_number_stays_visible() -> None:
    seen = [
        Observation(question="closed loop, requests/s", server="mosec", case="raw bytes, 8", value=value)
        for value in (10.0, 30.0, 20.0)
    ]
    seen.append(Observation(question="twice", server="mosec", case="refusal p99, ms", value=None))
    first, second = documents(seen, {"model": "mlp"})
    assert first["answers"] == {"mosec": {"raw bytes, 8": [20.0, 10.0, 30.0]}}
    assert second["answers"] == {"mosec": {"refusal p99, ms": [None, None, None]}}
    assert first["model"] == "mlp"
    text = table(seen)
    assert "mosec, raw bytes  20 (10 to 30)" in text
    assert "mosec                -" in text
