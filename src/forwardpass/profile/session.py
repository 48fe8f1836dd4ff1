"""In which processes variants are measured: one for each variant, the inputs they read, and who is asked when.

A process of its own lets a variant use libraries that would not share one. A session holds how they are started and
the records that measuring fills; what is measured is left to `measuring`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from forwardpass.core.archives import write_calls
from forwardpass.core.calls import CallSets
from forwardpass.core.operators import OperatorBreakdown
from forwardpass.core.protocols import Progress
from forwardpass.core.variants import Format, Variant
from forwardpass.profile.audits import AnswerDigest, InvarianceAudit
from forwardpass.profile.process import ChildProcess
from forwardpass.profile.profiles import Cell, SkippedCell
from forwardpass.profile.protocol import Command, Open, Opened
from forwardpass.profile.settings import ProfileSettings
from forwardpass.profile.starts import StartStudy
from forwardpass.runtimes.options import num_available_cores

__all__ = ["Record", "Session", "Steps", "ask_all", "open_session", "purpose_of"]

_A = TypeVar("_A")


def purpose_of(variant: Variant) -> str:
    """Return what `ChildFailed` says of a process that measures this variant; so its reader knows which one died."""
    return f"measuring the variant '{variant.name}'"


@contextmanager
def open_session(
    variants: Sequence[Variant],
    calls: CallSets,
    settings: ProfileSettings,
    progress: Progress,
    has_time: Callable[[], bool] = lambda: True,
    scratch: Path | None = None,
) -> Iterator[Session]:
    """Write the calls where the children will read them, for as long as they do."""
    with tempfile.TemporaryDirectory(prefix="forwardpass-profile-", dir=scratch) as folder:
        paths = _save_calls(calls, settings, Path(folder))
        yield Session(
            records={variant.name: Record(variant=variant) for variant in variants},
            paths=paths,
            num_calls={size: len(calls[size]) for size in paths},
            settings=settings,
            has_time=has_time,
            progress=Steps(progress, total=len(settings.thread_counts) * len(paths) + settings.num_cold_starts),
        )


class Steps:
    """Counts the steps of the work and tells how far it is."""

    def __init__(self, progress: Progress, *, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def name(self, text: str) -> None:
        """Say what is being done besides the steps."""
        self._progress(text, done=self._done / self._total)

    def __call__(self, text: str) -> None:
        """Say which step begins."""
        self._progress(text, done=self._done / self._total)
        self._done += 1


@dataclass(slots=True, kw_only=True)
class Record:
    """What has been measured of one variant so far."""

    variant: Variant
    opened: Opened | None = None
    cells: list[Cell] = field(default_factory=list)
    skipped: list[SkippedCell] = field(default_factory=list)
    audits: dict[int, InvarianceAudit] = field(default_factory=dict)
    by_threads: dict[int, list[AnswerDigest]] = field(default_factory=dict)
    fresh: list[list[AnswerDigest]] = field(default_factory=list)
    cold_starts: list[tuple[float, Opened]] = field(default_factory=list)
    operators: list[OperatorBreakdown] = field(default_factory=list)
    starts: StartStudy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """The work: what to measure, with which inputs, and the records that it fills."""

    records: Mapping[str, Record]
    paths: Mapping[int, str]
    num_calls: Mapping[int, int]
    settings: ProfileSettings
    progress: Steps
    has_time: Callable[[], bool]

    def spawn(self, record: Record) -> ChildProcess:
        """Prepare a process for a variant."""
        return ChildProcess(purpose=purpose_of(record.variant), max_wait_s=self.settings.max_wait_s)

    def lasts(self, record: Record) -> bool:
        """Tell whether one process measures a variant with all numbers of threads: other libraries keep their first."""
        return self.settings.is_lean_in_processes and record.variant.format in (Format.ONNX, Format.ORT)

    def opening(self, record: Record, num_threads: int) -> Open:
        """Return the command that loads a variant."""
        return Open(
            format=record.variant.format,
            location=record.variant.location,
            weights=record.variant.weights,
            num_threads=num_threads,
            calls=dict(self.paths),
            first_call=self.num_calls[min(self.paths)] // 2,
        )


def _save_calls(calls: CallSets, settings: ProfileSettings, folder: Path) -> dict[int, str]:
    """Write the calls of each batch size where the children will read them, the smallest call first."""
    paths = {}
    for batch_size in sorted({min(calls), *(size for size in settings.batch_sizes if size in calls)}):
        paths[batch_size] = str(folder / f"{batch_size}.npz")
        by_size = sorted(calls[batch_size], key=lambda call: sum(array.size for array in call.values()))
        write_calls(paths[batch_size], by_size, is_compressed=False)
    return paths


def ask_all(
    session: Session,
    children: Mapping[str, ChildProcess],
    commands: Mapping[str, Command],
    expected: type[_A],
    num_threads: int,
) -> dict[str, _A]:
    """Ask what is compared and not timed: of as many children at once as have cores, if that is wished."""
    at_once = max(num_available_cores() // num_threads, 1) if session.settings.is_lean_in_processes else 1
    answers = {}
    names = list(children)
    for start in range(0, len(names), at_once):
        group = names[start : start + at_once]
        for name in group:
            children[name].tell(commands[name])
        answers.update({name: children[name].hear(expected) for name in group})
    return answers
