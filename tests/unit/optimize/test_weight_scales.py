"""The scales given to onnxruntime's writer are those that it finds itself: the file is the same without them."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forwardpass.optimize import writers
from forwardpass.optimize.calibration import CalibrationMethod, TensorHistogram
from forwardpass.optimize.weight_scales import scale_overrides

onnx = pytest.importorskip("onnx")

NUM_INPUTS, NUM_OUTPUTS = 5, 4


@st.composite
def layers(draw: st.DrawFn) -> tuple[str, np.ndarray, dict[str, int]]:
    """An operator, its float32 weights (some channels zero, some nearly so) and its attributes."""
    operator, attributes = draw(
        st.sampled_from([("MatMul", {}), ("Gemm", {"transB": 0}), ("Gemm", {"transB": 1}), ("Conv", {})])
    )
    exponents = draw(st.lists(st.integers(-44, 30), min_size=NUM_OUTPUTS, max_size=NUM_OUTPUTS))
    sizes = np.array([0.0 if exponent < -41 else 10.0**exponent for exponent in exponents])
    weights = np.random.default_rng(draw(st.integers(0, 99))).normal(size=(NUM_OUTPUTS, NUM_INPUTS)) * sizes[:, None]
    weights = weights.astype(np.float32)
    if operator == "Conv":
        return operator, weights[:, :, None, None], attributes
    return operator, weights if attributes.get("transB") else weights.T, attributes


def write_layer(layer: tuple[str, np.ndarray, dict[str, int]], path: Path) -> None:
    operator, weights, attributes = layer
    tail = [1, 1] if operator == "Conv" else []
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", size, *tail])
        for name, size in (("x", NUM_INPUTS), ("y", NUM_OUTPUTS))
    ]
    node = onnx.helper.make_node(operator, ["x", "w"], ["y"], name="node", **attributes)
    constant = onnx.numpy_helper.from_array(np.ascontiguousarray(weights), "w")
    graph = onnx.helper.make_graph([node], "layer", ends[:1], ends[1:], [constant])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layer=layers(), reduce_range=st.booleans())
def test_a_file_is_the_same_as_with_the_writers_own_scales(
    layer: tuple[str, np.ndarray, dict[str, int]], reduce_range: bool, tmp_path: Path
) -> None:
    source, ours, theirs = tmp_path / "float.onnx", tmp_path / "ours.onnx", tmp_path / "theirs.onnx"
    write_layer(layer, source)
    histograms = {name: TensorHistogram(low=-3.0, high=4.0) for name in ("x", "y")}
    plan = writers.StaticPlan(nodes=("node",), histograms=histograms)

    def write(target: Path) -> None:
        writers.write_static(source, target, plan, method=CalibrationMethod.MINMAX, reduce_range=reduce_range)

    with patch.object(writers, "scale_overrides", wraps=scale_overrides) as used:
        write(ours)
    assert used.call_count == 1
    with patch.object(writers, "scale_overrides", return_value={}):
        write(theirs)

    assert ours.read_bytes() == theirs.read_bytes()


def test_weights_that_two_nodes_read_along_different_axes_are_left_to_the_writer() -> None:
    weights = onnx.numpy_helper.from_array(np.eye(3, dtype=np.float32), "w")
    nodes = [onnx.helper.make_node("Gemm", ["x", "w"], [f"y{at}"], transB=at) for at in (0, 1)]
    graph = onnx.helper.make_graph(nodes, "shared", [], [], [weights])
    model = onnx.helper.make_model(graph)

    assert scale_overrides(model, nodes, reduce_range=False) == {}
    assert set(scale_overrides(model, nodes[:1], reduce_range=False)) == {"w"}
