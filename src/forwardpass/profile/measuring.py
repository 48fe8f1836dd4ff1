"""Profiles variants side by side, their rounds interleaved: latency, cold start, memory, operators, the same answer.

The parent lets one child run at a time while the others block on a read. Variants therefore share the same minutes
of the same machine and do not disturb each other. The processes themselves are the subject of `session`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from forwardpass.core.calls import CallSets
from forwardpass.core.measurement import Measurement
from forwardpass.core.protocols import Progress
from forwardpass.core.statistics import measure_median
from forwardpass.core.tensors import Tensors
from forwardpass.core.variants import Variant
from forwardpass.profile.audits import AnswerDigest, InvarianceVerdict, conclude, differing_thread_counts
from forwardpass.profile.pacing import CellPlan, plan_cells, predict_call_s, skip_reason
from forwardpass.profile.process import ChildProcess
from forwardpass.profile.profiles import (
    ColdStart,
    Memory,
    RoundTimes,
    SkippedCell,
    VariantProfile,
    summarise_cell,
)
from forwardpass.profile.protocol import (
    Audit,
    Audited,
    Digest,
    Digested,
    Opened,
    Round,
    Rounds,
    Trace,
    Traced,
)
from forwardpass.profile.session import Record, Session, ask_all, open_session, purpose_of
from forwardpass.profile.settings import ProfileSettings
from forwardpass.profile.starting import study_starts
from forwardpass.report.format import format_number_of
from forwardpass.runtimes import companions

__all__ = ["audit_variants", "profile_variants"]

_NUM_WARM_UP_CALLS = 1
"""Beside the one that every round begins with: that one allocates, this one tells how long a call takes."""

_MIN_COLD_STARTS = 2
_NUM_FRESH_PROCESSES = 2
_ORDER_SEED = 20261101


def profile_variants(
    variants: Sequence[Variant],
    calls: CallSets,
    *,
    settings: ProfileSettings,
    progress: Progress,
    has_time: Callable[[], bool] = lambda: True,
    scratch: Path | None = None,
) -> tuple[VariantProfile, ...]:
    """Measure every variant and return the profiles in the same order.

    Batch sizes are those of `settings` that `calls` holds, and the smallest of `calls` in any case. When the time is
    over, the smallest batch with the first number of threads and one cold start are still measured, and nothing else.

    The inputs are kept in the folder `scratch` meanwhile, or in a temporary one.

    Raises:
        ForwardpassError: a variant cannot be loaded; the error is that of its runtime.
        ChildFailed: a process ended or hung before it answered.
    """
    with open_session(variants, calls, settings, progress, has_time, scratch) as session:
        with ExitStack() as stack:
            lasting: dict[str, ChildProcess] = {}
            for num_threads in settings.thread_counts:
                if num_threads == settings.thread_counts[0] or has_time():
                    _sweep(session, num_threads, lasting, stack)
        if has_time():
            _compare_threads(session)
            _trace(session)
        _measure_cold_starts(session)
        _study_starts(session)
        row_size = _row_size(calls[min(calls)])
        return tuple(_profile_of(record, row_size) for record in session.records.values())


def audit_variants(
    variants: Sequence[Variant], calls: CallSets, *, settings: ProfileSettings, progress: Progress
) -> tuple[InvarianceVerdict, ...]:
    """Audit the same answer of every variant and measure nothing else; return the verdicts in the same order.

    Raises:
        ForwardpassError: a variant cannot be loaded; the error is that of its runtime.
        ChildFailed: a process ended or hung before it answered.
    """
    with open_session(variants, calls, settings, progress) as session:
        for record in session.records.values():
            session.progress.name(f"same answer of {record.variant.name}")
            with session.spawn(record) as child:
                child.ask(session.opening(record, settings.thread_counts[0]), Opened)
                _audit(session, {record.variant.name: child}, settings.thread_counts[0])
        _compare_threads(session)
        for record in session.records.values():
            for _ in range(_NUM_FRESH_PROCESSES):
                _start_cold(session, [record], settings.thread_counts[0])
        return tuple(_verdict_of(record) for record in session.records.values())


# --- latency -------------------------------------------------------------------------------------------------------


def _sweep(session: Session, num_threads: int, lasting: dict[str, ChildProcess], outer: ExitStack) -> None:
    """Measure all batch sizes with one number of threads, all variants side by side.

    Processes that serve the next number of threads, too, are in `lasting` and end with `outer`.
    """
    with ExitStack() as stack:
        children: dict[str, ChildProcess] = {}
        for name, record in session.records.items():
            child = lasting.get(name)
            if child is None:
                child = (outer if session.lasts(record) else stack).enter_context(session.spawn(record))
            children[name] = child
            record.opened = child.ask(session.opening(record, num_threads), Opened)
            if session.lasts(record) and name not in lasting:
                record.cold_starts.append((time.perf_counter() - child.started_s, record.opened))
                lasting[name] = child
        _audit(session, children, num_threads)
        for batch_size in session.paths:
            if batch_size != min(session.paths) and not session.has_time():
                break
            session.progress(f"batch size {batch_size}, {format_number_of(num_threads, 'thread')}")
            _measure_batch_size(session, children, num_threads=num_threads, batch_size=batch_size)


def _measure_batch_size(
    session: Session, children: Mapping[str, ChildProcess], *, num_threads: int, batch_size: int
) -> None:
    call_s = {}
    for name, record in session.records.items():
        reason = _reason_to_skip(record, session.settings, num_threads=num_threads, batch_size=batch_size)
        if reason:
            record.skipped.append(SkippedCell(num_threads=num_threads, batch_size=batch_size, reason=reason))
        else:
            warm_up = Round(batch_size=batch_size, num_calls=1, num_passes=_NUM_WARM_UP_CALLS)
            call_s[name] = children[name].ask(warm_up, Rounds).wall_s[-1]
    if not call_s:
        return
    settings = session.settings.at(batch_size, min(session.paths))
    plans = plan_cells(call_s, num_available_calls=session.num_calls[batch_size], settings=settings)
    for name, rounds in _run_interleaved(children, plans, batch_size=batch_size).items():
        cell = summarise_cell(num_threads=num_threads, batch_size=batch_size, rounds=rounds)
        session.records[name].cells.append(cell)


def _run_interleaved(
    children: Mapping[str, ChildProcess], plans: Mapping[str, CellPlan], *, batch_size: int
) -> dict[str, list[RoundTimes]]:
    """Run a round of every variant, then the next one of every variant; who has had its rounds drops out.

    The order is drawn anew each time, so that nobody always runs in the wake of the same neighbour.
    """
    measured: dict[str, list[RoundTimes]] = {name: [] for name in plans}
    generator = random.Random(_ORDER_SEED)  # noqa: S311  # an order, not a secret
    for at in range(max(plan.num_rounds for plan in plans.values())):
        for name in generator.sample(list(plans), len(plans)):
            plan = plans[name]
            if at < plan.num_rounds:
                command = Round(batch_size=batch_size, num_calls=plan.num_calls, num_passes=plan.num_passes)
                rounds = children[name].ask(command, Rounds)
                measured[name].append(RoundTimes(wall_s=rounds.wall_s, cpu_s=rounds.cpu_s, rss_bytes=rounds.rss_bytes))
    return measured


def _reason_to_skip(record: Record, settings: ProfileSettings, *, num_threads: int, batch_size: int) -> str:
    cells = [cell for cell in record.cells if cell.num_threads == num_threads]
    skipped = [cell.batch_size for cell in record.skipped if cell.num_threads == num_threads]
    assert record.opened is not None, "the sweep opens every variant before it measures"
    if cells and not record.opened.is_batchable:
        return "the model takes one row a call"
    predicted_s = predict_call_s({cell.batch_size: cell.p50_s.value for cell in cells}, batch_size)
    return skip_reason(predicted_s, skipped, settings)


# --- cold start ----------------------------------------------------------------------------------------------------


def _measure_cold_starts(session: Session) -> None:
    """Start fresh processes, one after another, A B C A B C …; the sweep before has filled the page cache."""
    num_threads = session.settings.thread_counts[0]
    for number in range(session.settings.num_cold_starts):
        if number and not session.has_time():
            break
        due = [record for record in session.records.values() if _starts_again(record, number, session.settings)]
        if due:
            session.progress(f"cold start {number + 1} of {session.settings.num_cold_starts}")
            _start_cold(session, due, num_threads, stay=session.settings.is_lean_in_processes)


def _starts_again(record: Record, number: int, settings: ProfileSettings) -> bool:
    """Tell whether the start of this number is still to be done, and there is time for it."""
    spent_s = sum(total_s for total_s, _ in record.cold_starts)
    return len(record.cold_starts) <= number and (number < _MIN_COLD_STARTS or spent_s < settings.cold_start_budget_s)


def _start_cold(session: Session, records: Sequence[Record], num_threads: int, *, stay: bool = False) -> None:
    """Start each variant once more, note how long it took to its first answer, and hash its answers.

    If they `stay`, all are started before answers are hashed, which then need not be one after another.
    """
    with ExitStack() as stack:
        children: dict[str, ChildProcess] = {}
        for record in records:
            child = stack.enter_context(session.spawn(record))
            opened = child.ask(session.opening(record, num_threads), Opened)
            record.cold_starts.append((time.perf_counter() - child.started_s, opened))
            children[record.variant.name] = child
            if not stay:
                record.fresh.append(_digests(session, children, num_threads)[record.variant.name])
                children.clear()
                stack.close()
        for name, digests in _digests(session, children, num_threads).items():
            session.records[name].fresh.append(digests)


def _study_starts(session: Session) -> None:
    """Try what shortens the cold start of each variant, if that is asked for."""
    if not session.settings.num_start_trials:
        return
    num_threads = session.settings.thread_counts[0]
    for record in session.records.values():
        first = next(iter(record.audits.values()))
        session.progress.name(f"ways to start {record.variant.name} sooner")
        record.starts = study_starts(
            session.opening(record, num_threads),
            purpose=purpose_of(record.variant),
            batch_sizes=[digest.batch_size for digest in first.digests],
            call_s=record.cells[0].p50_s.value,
            settings=session.settings,
            name_step=session.progress.name,
        )


# --- operators ------------------------------------------------------------------------------------------------------


def _trace(session: Session) -> None:
    """Ask each variant where its time goes, in the smallest batch and in the largest that was measured."""
    if not session.settings.trace_s:
        return
    num_threads = session.settings.thread_counts[0]
    for record in session.records.values():
        sizes = sorted({cell.batch_size for cell in record.cells if cell.num_threads == num_threads})
        with session.spawn(record) as child:
            child.ask(session.opening(record, num_threads), Opened)
            for batch_size in sorted({sizes[0], sizes[-1]}):
                session.progress.name(f"operators of {record.variant.name}, batch size {batch_size}")
                command = Trace(batch_size=batch_size, budget_s=session.settings.trace_s)
                operators = child.ask(command, Traced).operators
                if operators is not None:
                    record.operators.append(operators)


# --- same answer ---------------------------------------------------------------------------------------------------


def _audit(session: Session, children: Mapping[str, ChildProcess], num_threads: int) -> None:
    """Audit variants in their first processes, and again with a number of threads that gives other bytes."""
    records = {name: session.records[name] for name in children}
    known = {name: children[name] for name, record in records.items() if record.audits}
    for name, digests in _digests(session, known, num_threads).items():
        records[name].by_threads[num_threads] = digests
    due = {
        name: children[name]
        for name, record in records.items()
        if not record.audits or num_threads in differing_thread_counts(record.by_threads)
    }
    if due:
        session.progress.name(f"same answer in any batch, {format_number_of(num_threads, 'thread')}")
    command = Audit(budget_s=session.settings.audit_budget_s)
    for name, audited in ask_all(session, due, dict.fromkeys(due, command), Audited, num_threads).items():
        records[name].audits[num_threads] = audited.audit
        records[name].by_threads.setdefault(num_threads, list(audited.audit.digests))


def _compare_threads(session: Session) -> None:
    """Hash the answers with the numbers of threads that the sweep did not measure."""
    for num_threads in session.settings.audit_thread_counts:
        for record in session.records.values():
            if num_threads in record.by_threads:
                continue
            session.progress.name(f"same answer with {format_number_of(num_threads, 'thread')}")
            with session.spawn(record) as child:
                child.ask(session.opening(record, num_threads), Opened)
                _audit(session, {record.variant.name: child}, num_threads)


def _digests(session: Session, children: Mapping[str, ChildProcess], num_threads: int) -> dict[str, list[AnswerDigest]]:
    """Hash what the audit hashed, in another process or once more in its own."""
    commands = {}
    for name in children:
        first = next(iter(session.records[name].audits.values()))
        commands[name] = Digest(batch_sizes=[digest.batch_size for digest in first.digests])
    answers = ask_all(session, children, commands, Digested, num_threads)
    return {name: answer.digests for name, answer in answers.items()}


def _row_size(calls: Sequence[Tensors]) -> int:
    """Return how many elements a row of the median call has, over all inputs."""
    sizes = [sum(array.size // max(len(array), 1) for array in call.values() if array.ndim) for call in calls]
    return sorted(sizes)[len(sizes) // 2]


def _profile_of(record: Record, row_size: int) -> VariantProfile:
    assert record.opened is not None, "every variant was opened"
    return VariantProfile(
        variant=record.variant.name,
        runtime=record.opened.runtime,
        runtime_version=record.opened.runtime_version,
        file_bytes=_file_bytes(record.variant),
        cells=tuple(record.cells),
        skipped=tuple(record.skipped),
        cold_start=_cold_start_of(record.cold_starts),
        memory=_memory_of([opened for _, opened in record.cold_starts]),
        invariance=_verdict_of(record),
        row_size=row_size,
        operators=tuple(record.operators),
        starts=record.starts,
    )


def _verdict_of(record: Record) -> InvarianceVerdict:
    return conclude(record.audits, record.by_threads, record.fresh)


def _cold_start_of(starts: Sequence[tuple[float, Opened]]) -> ColdStart:
    def seconds(values: list[float]) -> Measurement:
        return measure_median(np.array(values), unit="s")

    return ColdStart(
        start_s=seconds([total - it.import_s - it.load_s - it.first_run_s for total, it in starts]),
        import_s=seconds([it.import_s for _, it in starts]),
        load_s=seconds([it.load_s for _, it in starts]),
        first_run_s=seconds([it.first_run_s for _, it in starts]),
        total_s=seconds([total for total, _ in starts]),
        round_total_s=tuple(total for total, _ in starts),
    )


def _memory_of(opened: Sequence[Opened]) -> Memory:
    peaks = np.array([it.peak_rss_bytes for it in opened])
    added = np.array([it.peak_rss_bytes - it.rss_before_load_bytes for it in opened])
    return Memory(peak_bytes=measure_median(peaks, unit="bytes"), added_bytes=measure_median(added, unit="bytes"))


def _file_bytes(variant: Variant) -> int | None:
    """Return the size of the model file, or of a source's weights, with external weights beside it."""
    path = Path(variant.weights or variant.location)
    if not path.is_file():
        return None
    outside = () if variant.weights else companions(variant.format, path)
    return sum(file.stat().st_size for file in (path, *outside) if file.is_file())
