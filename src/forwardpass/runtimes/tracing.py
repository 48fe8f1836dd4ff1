"""Runs an ONNX file with ONNX Runtime's own profiler on, and measures what the machine can do at best."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from forwardpass.core.operators import NodeTrace, Roof, Shape
from forwardpass.core.tensors import Tensors
from forwardpass.runtimes.onnx import session_options
from forwardpass.runtimes.options import RuntimeOptions

__all__ = ["measure_roof", "trace_onnx"]

ROOF_SIZE = 512
"""Rows and columns of the matrices: a product takes about a millisecond, long enough to hide what a call costs, and
short enough that some of the runs are not interrupted on a busy machine."""
COPIED_BYTES = 32 * 2**20
"""Beyond what one core has in its own caches."""
NUM_ROOF_RUNS = 25
KERNEL = "_kernel_time"


def trace_onnx(
    path: str, calls: Sequence[Tensors], *, options: RuntimeOptions, budget_s: float
) -> tuple[NodeTrace, ...]:
    """Run `calls` over and over for `budget_s`, at least three times each; return every node with its times.

    The kernels take over weights when they pack them, and the runtime then says nothing of their shapes: those come
    from a second session that does not pack, which runs once.
    """
    rounds = _profile(path, calls, options, budget_s, packs=True)
    shapes = {event["name"]: event for event in _profile(path, calls[:1], options, 0.0, packs=False)[0]}
    names = list(dict.fromkeys(event["name"] for events in rounds for event in events))
    seconds: dict[str, list[float]] = {name: [] for name in names}
    described: dict[str, dict[str, Any]] = {}
    for events in rounds:
        for event in events:
            seconds[event["name"]].append(event["dur"] / 1e6)
            described[event["name"]] = event
    return tuple(_node(name, seconds[name], shapes.get(name, described[name])) for name in names)


def measure_roof(num_threads: int) -> Roof:
    """Return the best of a few large matrix products, and of a few large copies, with so many threads."""
    return Roof(flops_per_s=_best_flops(num_threads), bytes_per_s=_best_copy(num_threads))


def _profile(
    path: str, calls: Sequence[Tensors], options: RuntimeOptions, budget_s: float, *, packs: bool
) -> list[list[dict[str, Any]]]:
    """Return the events of the nodes, a list for each call; the first round of calls is left out as warm-up."""
    num_rounds = 0
    with tempfile.TemporaryDirectory(prefix="forwardpass-trace-") as folder:
        settings = session_options(options)
        settings.enable_profiling = True
        settings.profile_file_prefix = str(Path(folder) / "trace")
        if not packs:
            settings.add_session_config_entry("session.disable_prepacking", "1")
        session = ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        due_s = time.monotonic() + budget_s
        while num_rounds < 4 or time.monotonic() < due_s:
            for call in calls:
                session.run(None, dict(call))
            num_rounds += 1
            if not packs:
                break
        events = json.loads(Path(session.end_profiling()).read_text())
    runs = _by_run(events)
    return runs[len(calls) :] if packs else runs


def _by_run(events: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Split the events of nodes at the runs of the session; they are written in order, a run after its nodes."""
    runs: list[list[dict[str, Any]]] = [[]]
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(KERNEL):
            runs[-1].append(event)
        elif event.get("name") == "model_run":
            runs.append([])
    return [run for run in runs if run]


def _node(name: str, seconds: Sequence[float], event: dict[str, Any]) -> NodeTrace:
    args = event["args"]
    moved = sum(int(args.get(field) or 0) for field in ("parameter_size", "activation_size", "output_size"))
    return NodeTrace(
        name=name.removesuffix(KERNEL),
        operator=args["op_name"],
        seconds=tuple(seconds),
        input_shapes=_shapes(args["input_type_shape"]),
        output_shapes=_shapes(args["output_type_shape"]),
        num_bytes=moved,
    )


def _shapes(listed: Sequence[dict[str, Sequence[int]]]) -> tuple[Shape, ...]:
    return tuple(tuple(shape) for item in listed for shape in item.values())


def _best_flops(num_threads: int) -> float:
    settings = session_options(RuntimeOptions(num_threads=num_threads))
    session = ort.InferenceSession(_product_model(ROOF_SIZE), settings, providers=["CPUExecutionProvider"])
    call = {"a": np.ones((ROOF_SIZE, ROOF_SIZE), np.float32)}
    return float(2 * ROOF_SIZE**3 / min(_times(lambda: session.run(None, call))))


def _best_copy(num_threads: int) -> float:
    """Copy pieces on so many threads at once; every byte is read and written."""
    source = np.ones(COPIED_BYTES // 4, np.float32)
    target = np.empty_like(source)
    pieces = list(zip(np.array_split(target, num_threads), np.array_split(source, num_threads), strict=True))
    with ThreadPoolExecutor(num_threads) as pool:
        best_s = min(_times(lambda: list(pool.map(lambda pair: np.copyto(*pair), pieces))))
    return 2 * COPIED_BYTES / best_s


def _times(run: Any) -> list[float]:
    taken = []
    for _ in range(NUM_ROOF_RUNS + 1):
        started = time.perf_counter()
        run()
        taken.append(time.perf_counter() - started)
    return taken[1:]


def _product_model(size: int) -> bytes:
    """Return an ONNX file that multiplies `a` [rows, size] with constant weights [size, size].

    Written by hand in protobuf's wire format: profiling an ONNX file needs no `onnx` package.
    """
    weights = b"".join(
        (
            _number(1, size),
            _number(1, size),
            _number(2, 1),
            _field(8, b"w"),
            _field(9, np.ones((size, size), "<f4").tobytes()),
        )
    )
    node = _field(1, b"a") + _field(1, b"w") + _field(2, b"c") + _field(4, b"MatMul")
    graph = b"".join(
        (
            _field(1, node),
            _field(2, b"roof"),
            _field(5, weights),
            _field(11, _value_info(b"a", size)),
            _field(12, _value_info(b"c", size)),
        )
    )
    return _number(1, 8) + _field(7, graph) + _field(8, _number(2, 17))


def _value_info(name: bytes, size: int) -> bytes:
    shape = _field(1, _field(2, b"rows")) + _field(1, _number(1, size))
    return _field(1, name) + _field(2, _field(1, _number(1, 1) + _field(2, shape)))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _field(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
