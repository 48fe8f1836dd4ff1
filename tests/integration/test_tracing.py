"""ONNX Runtime's own profiler, read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.checker
import pytest
from onnx import TensorProto, helper, numpy_helper

from forwardpass.core.operators import break_down, count_flops
from forwardpass.runtimes import RuntimeOptions
from forwardpass.runtimes.tracing import _product_model, measure_roof, trace_onnx


def write_network(path: Path) -> Path:
    """A convolution to 16 channels (fewer are padded) and a product, with weights that the kernels pack and so hide."""
    weights = {"k": (16, 3, 3, 3), "w": (16 * 16 * 16, 10)}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "k"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Flatten", ["c"], ["f"]),
            helper.make_node("MatMul", ["f", "w"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_every_node_is_there_with_the_work_that_it_does(tmp_path: Path) -> None:
    path = write_network(tmp_path / "net.onnx")
    calls = [{"x": np.ones((2, 3, 16, 16), np.float32)}]
    traces = trace_onnx(str(path), calls, options=RuntimeOptions(), budget_s=0.05)
    flops = sum(count_flops(trace) for trace in traces)
    assert flops == 2 * 2 * 16**3 * (27 + 10)
    assert all(len(trace.seconds) >= 3 and min(trace.seconds) >= 0 for trace in traces)
    assert len({len(trace.seconds) for trace in traces}) == 1, "every call ran every node"


@pytest.mark.parametrize("num_threads", [1, 2])
def test_no_product_beats_the_roof_by_much(tmp_path: Path, num_threads: int) -> None:
    """The roof is the best of several runs, and a small network stays below it; both are noisy."""
    roof = measure_roof(num_threads)
    path = write_network(tmp_path / "net.onnx")
    calls = [{"x": np.ones((64, 3, 16, 16), np.float32)}]
    traces = trace_onnx(str(path), calls, options=RuntimeOptions(num_threads=num_threads), budget_s=0.1)
    found = break_down(traces, roof, num_threads=num_threads, batch_size=64)
    assert found.flops / found.total_s < 3 * roof.flops_per_s


def test_the_model_written_by_hand_is_one_that_onnx_accepts() -> None:
    model = onnx.load_from_string(_product_model(16))
    onnx.checker.check_model(model, full_check=True)
