"""The clocks of all contenders: one process each, all open at the same time, asked for rounds in turns."""

from __future__ import annotations

import json
import os
import random
import selectors
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from forwardpass.core.measurement import Measurement
from forwardpass.core.statistics import measure_ratio

__all__ = ["APPS", "Clock", "ClockFailed", "Contender", "Race", "race"]

APPS = Path(__file__).with_name("apps")
ROOT = Path(__file__).parents[2]
MAX_WAIT_S = 180.0
MAX_CALLS = 8
"""Rows that a round runs, spread over all lengths."""
TOO_SLOW = 30.0
"""Times the quickest."""
NUM_PASSES = range(5, 51)
_ORDER_SEED = 20261101


class ClockFailed(Exception):
    """A model cannot be opened or run in its own environment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A model with the interpreter and the runtime that it is run by."""

    name: str
    python: str
    how: Mapping[str, Any]
    """What the clock needs to open it."""


class Clock:
    """The process of one contender."""

    def __init__(self, contender: Contender, *, num_threads: int, samples: Path, input_names: Sequence[str]) -> None:
        path = os.pathsep.join(str(ROOT / part) for part in ("src", "", "examples"))
        self._process = subprocess.Popen(
            [contender.python, str(APPS / "clock.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"},
        )
        try:
            self.call_s = self.ask(
                do="open", data=str(samples), input_names=input_names, max_calls=MAX_CALLS, num_threads=num_threads,
                **contender.how,
            )["call_s"]  # fmt: skip
        except ClockFailed:
            self.close()
            raise

    def ask(self, **command: Any) -> dict[str, Any]:
        """Send a command and wait for its answer.

        Raises:
            ClockFailed: it has failed, hung or ended.
        """
        to, back = self._process.stdin, self._process.stdout
        assert to is not None
        assert back is not None
        try:
            to.write(json.dumps(command).encode() + b"\n")
            to.flush()
        except BrokenPipeError:
            raise ClockFailed("its process has ended") from None
        with selectors.DefaultSelector() as selector:
            selector.register(back, selectors.EVENT_READ)
            if not selector.select(MAX_WAIT_S):
                raise ClockFailed(f"it gave no answer within {MAX_WAIT_S:g} s")
        line = back.readline()
        if not line:
            raise ClockFailed("its process has ended")
        answer: dict[str, Any] = json.loads(line)
        if "failure" in answer:
            raise ClockFailed(answer["failure"])
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


@dataclass(slots=True, kw_only=True, eq=False)
class Race:
    """Seconds of a call, by contender and round; who failed, and why."""

    call_s: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def ratio(self, ours: str, theirs: str) -> Measurement:
        """Return how many times as fast as `theirs` the contender `ours` is, round against round."""
        return measure_ratio(np.array(self.call_s[theirs]), np.array(self.call_s[ours]))

    def spread(self, ours: str, theirs: str) -> tuple[float, float]:
        """Return the ratios that a tenth of the rounds stay below and above."""
        ratios = np.array(self.call_s[theirs]) / np.array(self.call_s[ours])
        low, high = np.quantile(ratios, (0.1, 0.9))
        return float(low), float(high)

    def median_s(self, name: str) -> float:
        """Return the median of the rounds."""
        return float(np.median(self.call_s[name]))


def race(
    contenders: Sequence[Contender],
    *,
    num_threads: int,
    samples: Path,
    input_names: Sequence[str],
    num_rounds: int,
    round_s: float,
) -> Race:
    """Let all contenders run a round, then the next one, in an order that is drawn anew each time."""
    result = Race()
    clocks: dict[str, Clock] = {}
    try:
        for contender in contenders:
            try:
                clocks[contender.name] = Clock(
                    contender, num_threads=num_threads, samples=samples, input_names=input_names
                )
            except ClockFailed as failure:
                result.failures[contender.name] = str(failure)
        _leave_out_the_slowest(clocks, result)
        result.call_s = {name: [] for name in clocks}
        num_passes = _num_passes([clock.call_s for clock in clocks.values()], round_s)
        generator = random.Random(_ORDER_SEED)
        for _ in range(num_rounds):
            for name in generator.sample(list(clocks), len(clocks)):
                try:
                    seconds = clocks[name].ask(do="round", num_passes=num_passes)["call_s"]
                except ClockFailed as failure:
                    result.failures[name] = str(failure)
                    clocks.pop(name).close()
                    del result.call_s[name]
                else:
                    result.call_s[name].append(seconds)
                time.sleep(0.001)  # threads of the last one that wait busily give up their core
    finally:
        for clock in clocks.values():
            clock.close()
    return result


def _leave_out_the_slowest(clocks: dict[str, Clock], result: Race) -> None:
    """Let nobody race who is far behind after a warm call: all would wait for it, and no ratio is needed then."""
    quickest = min((clock.call_s for clock in clocks.values()), default=0.0)
    for name, clock in list(clocks.items()):
        if clock.call_s > TOO_SLOW * quickest:
            result.failures[name] = f"{1e3 * clock.call_s:.0f} ms at a glance"
            clocks.pop(name).close()


def _num_passes(call_s: Sequence[float], round_s: float) -> int:
    """Return a number that is the same for all: the quickest of more passes would be quicker."""
    wanted = int(round_s / (float(np.median(call_s)) * MAX_CALLS)) if call_s else 0
    return min(max(wanted, NUM_PASSES.start), NUM_PASSES.stop - 1)
