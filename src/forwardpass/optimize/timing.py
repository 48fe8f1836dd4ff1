"""The child process that times files against each other: requests on stdin, one line of JSON each, and answers back.

The files of a request run in turns, so that they share the same moments of the machine. What is measured is the
processor time of the one thread that computes: neighbours on a shared machine lengthen it little.
"""

from __future__ import annotations

import sys
import time

import msgspec
import numpy as np

from forwardpass.core.tensors import Array
from forwardpass.runtimes import RuntimeOptions
from forwardpass.runtimes.onnx import OnnxRuntime

__all__ = ["Timed", "TimingRequest"]

_SEED = 20261101


class TimingRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Files to time, on the inputs in an .npz file or, without one, on made-up inputs of the shapes they declare."""

    files: tuple[str, ...]
    inputs: str = ""
    num_rounds: int
    round_s: float


class Timed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds of one call, by file and round; or why there are none."""

    call_s: tuple[tuple[float, ...], ...] = ()
    failure: str = ""


def _time(request: TimingRequest) -> Timed:
    runtimes = [OnnxRuntime(file, options=RuntimeOptions(num_threads=1)) for file in request.files]
    calls = [_inputs(runtime, request.inputs) for runtime in runtimes]
    numbers = []
    for runtime, call in zip(runtimes, calls, strict=True):
        runtime.run(call)
        numbers.append(max(1, min(1000, int(request.round_s / max(_call_s(runtime, call, 1), 1e-7)))))
    rounds: list[list[float]] = [[] for _ in runtimes]
    order = list(range(len(runtimes)))
    for _ in range(request.num_rounds):
        for place in order:
            rounds[place].append(_call_s(runtimes[place], calls[place], numbers[place]))
        order = order[1:] + order[:1]
    return Timed(call_s=tuple(map(tuple, rounds)))


def _call_s(runtime: OnnxRuntime, call: dict[str, Array], num_calls: int) -> float:
    start_s = time.thread_time()
    for _ in range(num_calls):
        runtime.run(call)
    return max((time.thread_time() - start_s) / num_calls, 1e-9)


def _inputs(runtime: OnnxRuntime, file: str) -> dict[str, Array]:
    if file:
        with np.load(file) as arrays:
            return dict(arrays)
    generator = np.random.default_rng(_SEED)
    made: dict[str, Array] = {}
    for spec in runtime.signature.inputs:
        shape = tuple(size for size in spec.shape if isinstance(size, int))
        is_bytes = spec.dtype == "uint8"
        made[spec.name] = (
            generator.integers(0, 256, shape).astype(np.uint8)
            if is_bytes
            else generator.standard_normal(shape).astype(np.float32)
        )
    return made


def _serve() -> None:
    for line in sys.stdin.buffer:
        try:
            answer = _time(msgspec.json.decode(line, type=TimingRequest))
        except Exception as error:  # the boundary of the process: the parent says it of this node
            answer = Timed(failure=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve()
