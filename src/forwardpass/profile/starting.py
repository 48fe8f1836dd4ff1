"""Trying what shortens a cold start: every way in fresh processes, in turns with the variant as it is."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from forwardpass.core.measurement import Measurement
from forwardpass.core.statistics import measure_median, measure_ratio
from forwardpass.core.variants import Format
from forwardpass.errors import ChildFailed, ForwardpassError
from forwardpass.profile.audits import AnswerDigest
from forwardpass.profile.process import ChildProcess
from forwardpass.profile.protocol import Digest, Digested, Open, Opened, Round, Rounds
from forwardpass.profile.settings import ProfileSettings
from forwardpass.profile.starts import StartStudy, StartTrial
from forwardpass.report.format import format_number_of
from forwardpass.runtimes.options import num_available_cores

__all__ = ["study_starts"]

LEAST_MODEL_S = 0.02
"""Where the model itself takes less than this, no form of its file is tried: Python and the runtime are the start."""
MIN_ROUNDS = 5
"""With three pairs, chance alone would call a way sure once in eight times; with five, once in thirty-two."""
STEADY_S = 0.1
MAX_STEADY_CALLS = 200
"""How long a process that has answered goes on, to see how long its calls take afterwards."""
_ORDER_SEED = 20261101
_TORCH_NOTE = (
    "Most of this start is the import of PyTorch. As ONNX it needs none of it: forwardpass convert, then profile the "
    "file beside this with --against."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """A way to try: how the file is written anew, and what is set otherwise."""

    what: str
    how: str
    name: str = ""
    """Of the file that `write` makes; empty where the variant's own file is used."""
    write: Callable[[Path, Path], object] | None = None
    format: Format | None = None
    packs_weights: bool = True
    num_threads: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    is_portable: bool = True


@dataclass(slots=True, kw_only=True)
class _Starts:
    """What was seen of one way, process by process."""

    command: Open
    environment: Mapping[str, str]
    opened: list[Opened] = field(default_factory=list)
    call_s: list[float] = field(default_factory=list)
    call_cpu_s: list[float] = field(default_factory=list)
    digests: list[AnswerDigest] | None = None
    failure: str = ""


def study_starts(
    opening: Open,
    *,
    purpose: str,
    batch_sizes: Sequence[int],
    call_s: float,
    settings: ProfileSettings,
    name_step: Callable[[str], None],
) -> StartStudy:
    """Try every way that fits the variant that `opening` loads.

    `batch_sizes` are those whose answers are compared, `call_s` is how long a call of the smallest batch size takes.

    Raises:
        ForwardpassError: the variant as it is cannot be run.
    """
    with tempfile.TemporaryDirectory(prefix="forwardpass-starts-") as scratch:
        folder = Path(scratch)
        as_it_is = _Starts(command=opening, environment={})
        first = _start(as_it_is, purpose, batch_sizes, call_s, settings)
        is_small = first.load_s + first.first_run_s < LEAST_MODEL_S
        ways = _ways(opening, folder, with_files=not is_small)
        tried = {way.what: _prepare(way, opening, folder) for way in ways}
        order = random.Random(_ORDER_SEED)  # noqa: S311
        begun_s = time.monotonic()
        for number in range(settings.num_start_trials):
            if number >= MIN_ROUNDS and time.monotonic() - begun_s > settings.start_trials_budget_s:
                break
            name_step(f"ways to start sooner, round {number + 1} of {settings.num_start_trials}")
            running = [as_it_is, *(it for it in tried.values() if not it.failure)]
            for starts in order.sample(running, len(running)):
                try:
                    _start(starts, purpose, batch_sizes, call_s, settings)
                except ForwardpassError as error:
                    if starts is as_it_is:
                        raise
                    starts.failure = error.reason if isinstance(error, ChildFailed) else str(error)
    # The start before the rounds has no partners.
    del as_it_is.opened[0], as_it_is.call_s[0], as_it_is.call_cpu_s[0]
    return StartStudy(
        as_it_is_s=measure_median(np.array(_own_s(as_it_is)), unit="s"),
        model_s=measure_median(np.array([it.load_s + it.first_run_s for it in as_it_is.opened]), unit="s"),
        trials=tuple(_conclude(way, tried[way.what], as_it_is) for way in ways),
        note=_note(opening.format, is_small=is_small, model_s=first.load_s + first.first_run_s),
    )


def _ways(opening: Open, folder: Path, *, with_files: bool) -> list[_Way]:
    ways = []
    if with_files and opening.format is Format.ONNX:
        ways += _files()
    if with_files and opening.format in (Format.ONNX, Format.ORT):
        ways.append(
            _Way(
                what="weights not packed for the kernels at load",
                how="session.disable_prepacking: never where requests share batches",
                packs_weights=False,
            )
        )
    num_cores = num_available_cores()
    other = num_cores if opening.num_threads == 1 else 1
    if num_cores > 1:
        ways.append(
            _Way(
                what=f"{format_number_of(other, 'thread')} instead of {opening.num_threads}",
                how="the number of threads of the worker",
                num_threads=other,
            )
        )
    ways.append(
        _Way(
            what="no compiled bytecode of Python beside the sources",
            how="what an image built with pip --no-compile costs at every start: compile it there",
            environment={"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": str(folder / "no-bytecode")},
        )
    )
    return ways


def _files() -> list[_Way]:
    """Return the other forms that an ONNX file can have."""
    from forwardpass.runtimes.onnx import save_mapped, save_optimised, save_ort

    cold = "forwardpass optimize --target cold-start"
    return [
        _Way(
            what="graph optimised beforehand",
            how=cold,
            name="graph.onnx",
            write=lambda source, target: save_optimised(source, target, level="extended"),
        ),
        _Way(
            what="weights in a file of their own, mapped",
            how=cold,
            name="outside.onnx",
            write=lambda source, target: save_mapped(source, target, level="none"),
        ),
        _Way(
            what="graph optimised beforehand, weights mapped",
            how=cold,
            name="mapped.onnx",
            write=lambda source, target: save_mapped(source, target, level="extended"),
        ),
        _Way(
            what="ONNX Runtime's own format, mapped",
            how="forwardpass convert --to ort",
            name="own.ort",
            write=save_ort,
            format=Format.ORT,
        ),
        _Way(
            what="ONNX Runtime's own format for this processor",
            how="forwardpass optimize --target cold-start --pin-processor",
            name="pinned.ort",
            write=lambda source, target: save_ort(source, target, for_this_processor=True),
            format=Format.ORT,
            is_portable=False,
        ),
    ]


def _prepare(way: _Way, opening: Open, folder: Path) -> _Starts:
    """Write the file of a way; one that cannot be written is a finding about the way."""
    command = msgspec.structs.replace(
        opening,
        format=way.format or opening.format,
        location=str(folder / way.name) if way.name else opening.location,
        packs_weights=way.packs_weights,
        num_threads=way.num_threads or opening.num_threads,
    )
    starts = _Starts(command=command, environment=way.environment)
    if way.write is not None:
        try:
            way.write(Path(opening.location), folder / way.name)
        except (ForwardpassError, OSError) as error:
            starts.failure = str(error)
    return starts


def _start(
    starts: _Starts, purpose: str, batch_sizes: Sequence[int], call_s: float, settings: ProfileSettings
) -> Opened:
    """Start one process, let it answer, and see what its calls take and say afterwards."""
    with ChildProcess(purpose=purpose, max_wait_s=settings.max_wait_s, environment=starts.environment) as child:
        opened = child.ask(starts.command, Opened)
        smallest = min(starts.command.calls)
        num_passes = max(min(int(STEADY_S / max(call_s, 1e-9)), MAX_STEADY_CALLS), 1)
        rounds = child.ask(Round(batch_size=smallest, num_calls=1, num_passes=num_passes), Rounds)
        if starts.digests is None:
            starts.digests = child.ask(Digest(batch_sizes=list(batch_sizes)), Digested).digests
    starts.opened.append(opened)
    starts.call_s.append(float(np.median(rounds.wall_s)))
    starts.call_cpu_s.append(float(np.median(rounds.cpu_s)))
    return opened


def _own_s(starts: _Starts) -> list[float]:
    return [it.import_s + it.load_s + it.first_run_s for it in starts.opened]


def _conclude(way: _Way, starts: _Starts, as_it_is: _Starts) -> StartTrial:
    if starts.failure or not starts.opened:
        return StartTrial(
            what=way.what, how=way.how, is_portable=way.is_portable, failure=starts.failure or "it was not tried"
        )
    own, theirs = np.array(_own_s(starts)), np.array(_own_s(as_it_is))[: len(starts.opened)]
    return StartTrial(
        what=way.what,
        how=way.how,
        own_s=measure_median(own, unit="s"),
        saved_s=measure_median(theirs - own, unit="s"),
        slowdown=_slowdown(starts, as_it_is),
        is_same_answer=starts.digests == as_it_is.digests,
        is_portable=way.is_portable,
    )


def _slowdown(starts: _Starts, as_it_is: _Starts) -> Measurement:
    """Compare calls by their processor time, which other processes hardly move; by wall time with other threads."""
    if starts.command.num_threads == as_it_is.command.num_threads:
        ours, theirs = starts.call_cpu_s, as_it_is.call_cpu_s
    else:
        ours, theirs = starts.call_s, as_it_is.call_s
    return measure_ratio(np.array(ours), np.array(theirs)[: len(ours)])


def _note(format: Format, *, is_small: bool, model_s: float) -> str:  # noqa: A002
    if format is Format.TORCH:
        return _TORCH_NOTE
    if is_small:
        return (
            f"The model itself takes {model_s * 1e3:.1f} ms of it; no other form of its file was tried, since none can "
            "save more. The rest is the import of the runtime: keep processes alive, or start from a snapshot."
        )
    return ""
