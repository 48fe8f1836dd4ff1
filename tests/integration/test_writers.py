"""Every writer's file loads, answers close to FP32, and is the same each time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from forwardpass.core.samples import SampleGroup, Samples
from forwardpass.core.tensors import Array
from forwardpass.core.variants import Format
from forwardpass.errors import NothingToQuantise
from forwardpass.optimize import rescaling
from forwardpass.optimize.calibration import CalibrationMethod
from forwardpass.optimize.naming import load_named, load_structure
from forwardpass.optimize.probe import int8_saturates
from forwardpass.optimize.rescaling import static_forms
from forwardpass.optimize.writers import (
    CHAIN_OPERATORS,
    nodes_in_8_bits,
    plan_static,
    static_bytes,
    whole_nodes,
    write_dynamic,
    write_fp16_storage,
    write_graph,
    write_static,
)
from forwardpass.predict import relative_error
from forwardpass.runtimes import RuntimeOptions, open_runtime
from forwardpass.runtimes.onnx import save_optimised
from tests.models import write_cnn, write_embedding, write_mlp

INT8_TOLERANCE = 0.05
"""Two layers with 8-bit weights and activations: each rounds by up to 1/255 of its range."""


def samples_of(*shape: int) -> Samples:
    pixels = np.random.default_rng(2).standard_normal((64, *shape)).astype(np.float32)
    return Samples(groups=(SampleGroup(inputs={"pixels": pixels}),))


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mlp(tmp_path_factory.mktemp("writers") / "mlp.onnx")


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cnn(tmp_path_factory.mktemp("writers") / "cnn.onnx")


def scores(path: Path, samples: Samples) -> Array:
    runtime = open_runtime(Format.ONNX, str(path), options=RuntimeOptions())
    return runtime.run(samples.groups[0].inputs)["scores"]


def static(source: Path, target: Path, samples: Samples, *, reduce_range: bool = False) -> None:
    plan = plan_static(source, samples)
    write_static(source, target, plan, method=CalibrationMethod.MINMAX, reduce_range=reduce_range)


def static_7_bit(source: Path, target: Path, samples: Samples) -> None:
    static(source, target, samples, reduce_range=True)


WRITERS: dict[str, tuple[Callable[[Path, Path, Samples], object], float]] = {
    "graph": (lambda source, target, samples: write_graph(source, target), 1e-6),
    "fp16": (lambda source, target, samples: write_fp16_storage(source, target), 1e-3),
    "dynamic": (lambda source, target, samples: write_dynamic(source, target, reduce_range=False), INT8_TOLERANCE),
    "dynamic-7-bit": (lambda source, target, samples: write_dynamic(source, target, reduce_range=True), INT8_TOLERANCE),
    "static": (static, INT8_TOLERANCE),
    "static-7-bit": (
        lambda source, target, samples: static(source, target, samples, reduce_range=True),
        INT8_TOLERANCE,
    ),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_a_variant_answers_close_to_fp32_and_is_written_the_same_again(
    name: str, model: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source: Path = request.getfixturevalue(model)
    samples = samples_of(64) if model == "mlp" else samples_of(3, 8, 8)
    write, tolerance = WRITERS[name]
    write(source, tmp_path / "one.onnx", samples)
    write(source, tmp_path / "two.onnx", samples)
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()
    assert relative_error(scores(tmp_path / "one.onnx", samples), scores(source, samples)) < tolerance


def initialisers(path: Path) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(str(path)).graph.initializer}


@pytest.mark.parametrize(("reduce_range", "largest"), [(False, 127), (True, 64)])
def test_quantised_weights_are_within_half_a_scale_of_the_originals(
    mlp: Path, tmp_path: Path, reduce_range: bool, largest: int
) -> None:
    static(mlp, tmp_path / "int8.onnx", samples_of(64), reduce_range=reduce_range)
    before, after = initialisers(mlp), initialisers(tmp_path / "int8.onnx")
    quantised, scale = after["w1_quantized"].astype(np.float64), after["w1_scale"]
    assert after["w1_quantized"].dtype == np.int8
    assert np.abs(quantised).max() <= largest
    assert (np.abs(quantised * scale[None, :] - before["w1"]) <= scale[None, :] / 2 + 1e-7).all()


def test_a_depthwise_convolution_stays_in_float(cnn: Path, tmp_path: Path) -> None:
    assert "depthwise" not in plan_static(cnn, samples_of(3, 8, 8)).nodes
    static(cnn, tmp_path / "int8.onnx", samples_of(3, 8, 8))
    assert initialisers(tmp_path / "int8.onnx")["w2"].dtype == np.float32


def test_from_convolution_to_convolution_nothing_is_in_float(tmp_path: Path) -> None:
    source, samples = with_shortcut(tmp_path / "cnn.onnx"), samples_of(3, 8, 8)
    nodes = frozenset(node.name for node in whole_nodes(load_named(source)))
    plan = plan_static(source, samples, nodes=nodes, operators=CHAIN_OPERATORS)
    write_static(source, tmp_path / "int8.onnx", plan, method=CalibrationMethod.MINMAX, reduce_range=int8_saturates())
    assert relative_error(scores(tmp_path / "int8.onnx", samples), scores(source, samples)) < INT8_TOLERANCE
    save_optimised(tmp_path / "int8.onnx", tmp_path / "fused.onnx", level="extended")
    fused = [node.op_type for node in onnx.load(str(tmp_path / "fused.onnx")).graph.node]
    assert fused[:4] == ["QuantizeLinear", "QLinearConv", "QLinearConv", "QLinearAdd"]


def test_what_is_added_beside_convolutions_stays_in_float(mlp: Path, tmp_path: Path) -> None:
    with pytest.raises(NothingToQuantise, match="no Conv with constant weights"):
        whole_nodes(load_named(mlp))
    model = onnx.load(str(with_shortcut(tmp_path / "cnn.onnx")))
    shift = helper.make_node("Add", ["flat", "flat"], ["shifted"], name="of the float part")
    next(node for node in model.graph.node if node.op_type == "Gemm").input[0] = "shifted"
    model.graph.node.insert(len(model.graph.node) - 1, shift)
    chosen = [node.name for node in whole_nodes(model)]
    assert "shortcut" in chosen
    assert "of the float part" not in chosen


def with_shortcut(path: Path) -> Path:
    """Write the CNN with a sum of what goes into and comes out of the depthwise convolution."""
    model = onnx.load(str(write_cnn(path)))
    pool = next(node for node in model.graph.node if node.op_type == "GlobalAveragePool")
    pool.input[0] = "sum"
    places = [place for place, node in enumerate(model.graph.node) if node.op_type == "GlobalAveragePool"]
    model.graph.node.insert(places[0], helper.make_node("Add", ["r1", "r2"], ["sum"], name="shortcut"))
    onnx.save(model, str(path))
    return path


def test_weights_beyond_the_range_of_float16_stay_as_they_are(tmp_path: Path) -> None:
    model = onnx.load(str(write_mlp(tmp_path / "mlp.onnx")))
    large = numpy_helper.to_array(model.graph.initializer[0]).copy()
    large[0, 0] = 1e6
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(large, "w1"))
    onnx.save(model, str(tmp_path / "large.onnx"))
    assert write_fp16_storage(tmp_path / "large.onnx", tmp_path / "fp16.onnx") == 1
    kept = initialisers(tmp_path / "fp16.onnx")
    assert (kept["w1"].dtype.name, kept["w2.fp16"].dtype.name) == ("float32", "float16")


@pytest.mark.parametrize("names", [["", "", ""], ["same", "same", "same"], ["Gemm#0", "", "Gemm#0"]])
def test_nodes_are_picked_by_names_of_their_own_whatever_the_file_calls_them(names: list[str], tmp_path: Path) -> None:
    model = onnx.load(str(write_mlp(tmp_path / "mlp.onnx")))
    for node, name in zip(model.graph.node, names, strict=True):
        node.name = name
    onnx.save(model, str(tmp_path / "named.onnx"))
    plan = plan_static(tmp_path / "named.onnx", samples_of(64))
    assert len(set(plan.nodes)) == 2
    one = replace(plan, nodes=plan.nodes[:1])
    write_static(tmp_path / "named.onnx", tmp_path / "one.onnx", one, method=CalibrationMethod.MSE, reduce_range=False)
    assert {"w1_quantized", "w2"} <= initialisers(tmp_path / "one.onnx").keys()


@pytest.mark.parametrize("trans_b", [0, 1])
def test_dynamic_quantisation_reaches_gemms(trans_b: int, tmp_path: Path) -> None:
    model = onnx.load(str(write_mlp(tmp_path / "mlp.onnx")))
    first, weights = model.graph.node[0], model.graph.initializer[0]
    first.attribute.append(helper.make_attribute("transB", trans_b))
    if trans_b:
        weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights).T.copy(), "w1"))
    onnx.save(model, str(tmp_path / "mlp.onnx"))
    write_dynamic(tmp_path / "mlp.onnx", tmp_path / "int8.onnx", reduce_range=False)
    operators = [node.op_type for node in onnx.load(str(tmp_path / "int8.onnx")).graph.node]
    assert (operators.count("MatMulInteger"), operators.count("Gemm")) == (2, 0)


def test_an_embedding_alone_is_not_quantised(tmp_path: Path) -> None:
    source = write_embedding(tmp_path / "embedding.onnx")
    with pytest.raises(NothingToQuantise):
        write_dynamic(source, tmp_path / "int8.onnx", reduce_range=False)
    with pytest.raises(NothingToQuantise):
        plan_static(source, samples_of(64))


def test_the_probe_gives_an_answer_for_this_processor() -> None:
    assert int8_saturates() in (True, False)


@pytest.mark.parametrize("operators", [None, CHAIN_OPERATORS])
@pytest.mark.parametrize("largest_bias", [1.0, 1e9])
def test_one_writing_gives_the_bytes_of_every_calibration_method(
    cnn: Path, tmp_path: Path, operators: tuple[str, ...] | None, largest_bias: float
) -> None:
    """Also where a bias is so large that the writer widens the scales of the weights, each method another way."""
    model = onnx.load(str(cnn))
    for node in model.graph.node:
        if node.op_type == "Conv" and len(node.input) > 2:
            bias = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[2])
            values = numpy_helper.to_array(bias) + np.float32(largest_bias)
            bias.CopyFrom(numpy_helper.from_array(values.astype(np.float32), bias.name))
    onnx.save(model, str(tmp_path / "model.onnx"))
    source = tmp_path / "folded.onnx"
    save_optimised(tmp_path / "model.onnx", source, level="basic")
    samples = samples_of(3, 8, 8)
    if operators is None:
        plan = plan_static(source, samples)
    else:
        nodes = frozenset(node.name for node in whole_nodes(load_named(source)))
        plan = plan_static(source, samples, nodes=nodes, operators=operators)
    forms = dict(static_forms(source, list(CalibrationMethod), plan, reduce_range=False))
    for method, form in forms.items():
        write_static(source, tmp_path / "alone.onnx", plan, method=method, reduce_range=False)
        assert form == (tmp_path / "alone.onnx").read_bytes()
    assert len(set(forms.values())) == 3


def test_the_weights_of_a_perceptron_are_quantised_once_for_all_calibration_methods(
    mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "folded.onnx"
    save_optimised(mlp, source, level="basic")
    plan = plan_static(source, samples_of(64))
    alone = {method: static_bytes(source, plan, method=method, reduce_range=True) for method in CalibrationMethod}
    monkeypatch.setattr(rescaling, "static_bytes", lambda *_, **__: pytest.fail("written twice"))
    assert dict(static_forms(source, list(CalibrationMethod), plan, reduce_range=True)) == alone


def test_the_structure_of_a_file_is_read_once_and_holds_no_weights(cnn: Path, tmp_path: Path) -> None:
    source = tmp_path / "cnn.onnx"
    source.write_bytes(cnn.read_bytes())
    structure = load_structure(source)
    assert load_structure(source) is structure
    whole = load_named(source)
    assert structure.graph.node == whole.graph.node
    assert [it.dims for it in structure.graph.initializer] == [it.dims for it in whole.graph.initializer]
    assert [node.name for node in whole_nodes(structure)] == [node.name for node in whole_nodes(whole)]
    assert structure.ByteSize() < whole.ByteSize()
    whole.graph.node[0].name = "another"
    onnx.save(whole, str(source))
    assert load_structure(source).graph.node[0].name == "another"


@pytest.mark.parametrize("num_nodes", [1, None])
def test_a_static_file_tells_which_of_its_nodes_are_in_8_bits(num_nodes: int | None, cnn: Path, tmp_path: Path) -> None:
    everything = plan_static(cnn, samples_of(3, 8, 8))
    plan = replace(everything, nodes=everything.nodes[:num_nodes])
    write_static(cnn, tmp_path / "static.onnx", plan, method=CalibrationMethod.MINMAX, reduce_range=False)
    assert nodes_in_8_bits(onnx.load(str(tmp_path / "static.onnx"))) == set(plan.nodes)
