"""The process that measures one variant: `python -m forwardpass.profile.child`.

It reads commands from stdin and answers on what was its stdout; anything that a library prints goes to stderr. It
imports nothing but the protocol until it is told to open a variant, so that the import phase of a cold start holds
what a user's process would import too.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from forwardpass.errors import ForwardpassError
from forwardpass.profile.protocol import (
    Answer,
    Audit,
    Audited,
    Command,
    Digest,
    Digested,
    Failed,
    Open,
    Opened,
    Round,
    Rounds,
    Trace,
    Traced,
)

if TYPE_CHECKING:
    from forwardpass.core.protocols import Runtime
    from forwardpass.core.tensors import Array

__all__ = ["main"]


class MeasuredVariant:
    """A loaded variant with the calls to run it with."""

    def __init__(self, runtime: Runtime, command: Open) -> None:
        self._runtime = runtime
        self._opened = command
        self._paths = command.calls
        self._calls: dict[int, list[dict[str, Array]]] = {}

    def run_round(self, command: Round) -> Rounds:
        """Run a round with the garbage collector off, which would otherwise strike one call among many.

        One call before it is not timed: the variant whose turn it was has left its own data in the caches, and its
        threads may not be asleep yet.
        """
        from forwardpass.profile.pacing import pick_evenly

        calls = pick_evenly(self._load(command.batch_size), command.num_calls)
        self._runtime.run(calls[len(calls) // 2])
        gc.disable()
        try:
            return _time_calls(self._runtime.run, calls, command.num_passes)
        finally:
            gc.enable()

    def audit(self, command: Audit) -> Audited:
        """Audit batch invariance with the rows of the largest batches."""
        from forwardpass.profile.invariance import audit_invariance

        return Audited(audit=audit_invariance(self._runtime, self._audited_calls(), budget_s=command.budget_s))

    def digest(self, command: Digest) -> Digested:
        """Hash the answers to rows of the audit."""
        from forwardpass.profile.invariance import digest_answers

        return Digested(digests=list(digest_answers(self._runtime, self._audited_calls(), command.batch_sizes)))

    def trace(self, command: Trace) -> Traced:
        """Find out where the time goes."""
        from forwardpass.core.operators import break_down
        from forwardpass.core.variants import Format

        if self._opened.format is not Format.ONNX:
            return Traced(operators=None)
        from forwardpass.runtimes import RuntimeOptions
        from forwardpass.runtimes.tracing import measure_roof, trace_onnx

        calls = self._load(command.batch_size)
        num_threads = self._opened.num_threads
        traces = trace_onnx(
            self._opened.location,
            [calls[len(calls) // 2]],
            options=RuntimeOptions(num_threads=num_threads),
            budget_s=command.budget_s,
        )
        roof = measure_roof(num_threads)
        return Traced(operators=break_down(traces, roof, num_threads=num_threads, batch_size=command.batch_size))

    def _audited_calls(self) -> list[dict[str, Array]]:
        pick = max if self._runtime.signature.is_batchable else min
        return self._load(pick(self._paths))

    def _load(self, batch_size: int) -> list[dict[str, Array]]:
        if batch_size not in self._calls:
            self._calls[batch_size] = load_calls(self._paths[batch_size])
        return self._calls[batch_size]


def load_calls(path: str, *, only: int | None = None) -> list[dict[str, Array]]:
    """Read calls, or only one of them."""
    from forwardpass.core.archives import read_calls

    return read_calls(path, only=only)


def open_variant(command: Open) -> tuple[MeasuredVariant, Opened]:
    """Load a variant and run it once, timing each phase of the cold start."""
    started = time.perf_counter()
    _import_runtime(command)
    imported = time.perf_counter()
    rss_before_load = read_memory("VmRSS")
    runtime = _open_runtime(command)
    loaded = time.perf_counter()
    (call,) = load_calls(command.calls[min(command.calls)], only=command.first_call)
    _check_takes(runtime, call, command)
    ready = time.perf_counter()
    runtime.run(call)
    ran = time.perf_counter()
    opened = Opened(
        runtime=runtime.name,
        runtime_version=runtime.version,
        is_batchable=runtime.signature.is_batchable,
        import_s=imported - started,
        load_s=loaded - imported,
        first_run_s=ran - ready,
        rss_before_load_bytes=rss_before_load,
        peak_rss_bytes=read_memory("VmHWM"),
    )
    return MeasuredVariant(runtime, command), opened


def _check_takes(runtime: Runtime, call: dict[str, Array], command: Open) -> None:
    """Refuse a model whose inputs are not those that all variants are measured with, in words and not in its own."""
    from forwardpass.core.variants import Format
    from forwardpass.errors import InvalidModel, TensorMismatch

    if command.format is Format.TORCH:
        return  # a module has no signature before it ran
    try:
        runtime.signature.validate(call)
    except TensorMismatch as error:
        reason = f"it does not take the inputs that are measured with: {str(error).rstrip('.')}"
        raise InvalidModel(path=command.location, reason=reason) from error


def read_memory(field: str) -> int:
    """Return `VmRSS` or `VmHWM` of this process in bytes.

    `ru_maxrss` will not do for the peak: across fork and exec it keeps the peak of the parent.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def main() -> None:
    """Answer commands until stdin ends."""
    commands, answers = _take_over_streams()
    _serve(commands, answers)
    # Tearing the libraries down costs time, and some crash while at it; there is nothing left to save.
    os._exit(0)


def _take_over_streams() -> tuple[BinaryIO, BinaryIO]:
    """Keep stdin and stdout for the protocol; everybody else reads nothing and prints to stderr."""
    commands, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return commands, answers


def _serve(commands: BinaryIO, answers: BinaryIO) -> None:
    decoder = msgspec.json.Decoder(Command)
    variant: MeasuredVariant | None = None
    for line in commands:
        answer: Answer
        try:
            command = decoder.decode(line)
            if isinstance(command, Open):
                variant = None  # the one before leaves the memory first
                variant, answer = open_variant(command)
            else:
                assert variant is not None, "the first command opens the variant"
                answer = _obey(variant, command)
        except Exception as error:  # the boundary of the process: the parent raises it again
            answer = _failure(error)
        answers.write(msgspec.json.encode(answer) + b"\n")
        answers.flush()


def _obey(variant: MeasuredVariant, command: Round | Audit | Digest | Trace) -> Answer:
    if isinstance(command, Audit):
        return variant.audit(command)
    if isinstance(command, Trace):
        return variant.trace(command)
    return variant.digest(command) if isinstance(command, Digest) else variant.run_round(command)


def _failure(error: Exception) -> Failed:
    if isinstance(error, ForwardpassError):
        return Failed(reason=str(error), slug=error.slug, facts=vars(error))
    text = str(error).strip().splitlines()
    return Failed(reason=f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__)


def _import_runtime(command: Open) -> None:
    """Import what `open_runtime` would import first, so that loading can be timed without it."""
    from forwardpass.runtimes import import_runtime

    import_runtime(command.format)


def _open_runtime(command: Open) -> Runtime:
    from forwardpass.runtimes import RuntimeOptions, open_runtime

    options = RuntimeOptions(num_threads=command.num_threads, packs_weights=command.packs_weights)
    return open_runtime(command.format, command.location, weights=command.weights, options=options)


def _time_calls(run: Callable[[dict[str, Array]], object], calls: list[dict[str, Array]], num_passes: int) -> Rounds:
    wall_s, cpu_s = [], []
    for _ in range(num_passes):
        for call in calls:
            cpu_started, started = time.process_time(), time.perf_counter()
            run(call)
            ended, cpu_ended = time.perf_counter(), time.process_time()
            wall_s.append(ended - started)
            cpu_s.append(cpu_ended - cpu_started)
    return Rounds(wall_s=wall_s, cpu_s=cpu_s, rss_bytes=read_memory("VmRSS"))


if __name__ == "__main__":
    main()
