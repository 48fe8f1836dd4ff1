"""Weights alone in fewer bits: the runtime computes what the blocks stand for, and a search keeps what it must."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from forwardpass.core.measurement import Interval, Measurement
from forwardpass.core.samples import SampleGroup, Samples
from forwardpass.core.tensors import Array
from forwardpass.core.variants import Format, Precision, Variant
from forwardpass.errors import NothingGained, NothingToQuantise
from forwardpass.optimize import weighting
from forwardpass.optimize.blocks import quantise_blocks, restore_blocks
from forwardpass.optimize.candidates import Workshop
from forwardpass.optimize.gains import NodeGain
from forwardpass.optimize.naming import load_named
from forwardpass.optimize.results import ResultStore
from forwardpass.optimize.terms import Terms
from forwardpass.optimize.weighting import WeightWork, build_weights, evidence_of
from forwardpass.optimize.weights import (
    ALL_FORMS,
    FORMS,
    BlockStore,
    WeightForm,
    weight_errors,
    weight_nodes,
    write_weights,
)
from forwardpass.runtimes import RuntimeOptions, open_runtime
from tests.models import write_cnn

DEPTH, WIDTH = 80, 24
"""80 is no multiple of a block."""


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def write(path: Path, nodes: list[onnx.NodeProto], weights: dict[str, Array], *, size: int = DEPTH) -> Path:
    """Write `x [batch, size] -> y` of these nodes."""
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "columns"])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def ask(path: Path, x: Array) -> Array:
    return open_runtime(Format.ONNX, str(path), options=RuntimeOptions()).run({"x": x})["y"]


PRODUCTS = {
    "MatMul": helper.make_node("MatMul", ["x", "w"], ["y"], name="product"),
    "Gemm": helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="product"),
    "Gemm, transposed and scaled": helper.make_node(
        "Gemm", ["x", "v", "b"], ["y"], name="product", transB=1, alpha=0.5
    ),
}


@pytest.mark.parametrize("form", ALL_FORMS, ids=str)
@pytest.mark.parametrize("kind", PRODUCTS)
def test_the_runtime_multiplies_with_the_matrix_that_the_blocks_stand_for(
    kind: str, form: WeightForm, tmp_path: Path
) -> None:
    matrix, bias = random(DEPTH, WIDTH), random(WIDTH, seed=1)
    weights = {"w": matrix, "v": np.ascontiguousarray(matrix.T), "b": bias}
    used = {name: values for name, values in weights.items() if name in PRODUCTS[kind].input}
    source = write(tmp_path / "source.onnx", [PRODUCTS[kind]], used)
    for name in ("one", "two"):
        write_weights(source, tmp_path / f"{name}.onnx", {"product": form}, store=BlockStore())
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()
    scaled = matrix * np.float32(0.5) if "scaled" in kind else matrix
    expected = restore_blocks(quantise_blocks(scaled, bits=form.bits, block_size=form.block_size))
    expected = expected + (bias if kind != "MatMul" else 0)
    # A row of the identity is one 127 in 8 bits: what comes out is the matrix, up to the last bits of a scale.
    np.testing.assert_allclose(ask(tmp_path / "one.onnx", np.eye(DEPTH, dtype=np.float32)), expected, atol=1e-5)


@pytest.mark.parametrize("form", ALL_FORMS, ids=str)
def test_no_row_of_a_batch_changes_another(form: WeightForm, tmp_path: Path) -> None:
    source = write(tmp_path / "source.onnx", [PRODUCTS["MatMul"]], {"w": random(DEPTH, WIDTH)})
    write_weights(source, tmp_path / "rounded.onnx", {"product": form}, store=BlockStore())
    rows = random(33, DEPTH, seed=2)
    changed = rows.copy()
    changed[1::2] *= 1000
    for size in (2, 3, 4, 7, 16, 17, 33):
        one, other = (ask(tmp_path / "rounded.onnx", batch[:size]) for batch in (rows, changed))
        np.testing.assert_array_equal(one[::2], other[::2])
        alone = ask(tmp_path / "rounded.onnx", rows[:1])
        np.testing.assert_allclose(one[:1], alone, rtol=1e-5, atol=1e-5)  # the last bits may differ in great blocks


def test_what_is_no_plain_product_with_a_matrix_is_left_alone(tmp_path: Path) -> None:
    left = [
        helper.make_node("MatMul", ["x", "stack"], ["a"], name="three axes"),
        helper.make_node("MatMul", ["w", "x2"], ["b"], name="constant first"),
        helper.make_node("Gemm", ["x", "w", "row"], ["c"], name="a bias for every row"),
        helper.make_node("Gemm", ["x", "w", "bias"], ["d"], name="half a bias", beta=0.5),
        helper.make_node("Gemm", ["x3", "w", "bias"], ["e"], name="transposed activation", transA=1),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="plain"),
    ]
    graph = helper.make_graph(
        left,
        "left",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "x2", "x3")],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(values, name)
            for name, values in (
                ("w", random(8, 8)), ("stack", random(2, 8, 8)), ("row", random(1, 1)), ("bias", random(8)),
            )
        ],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    assert [node.name for node in weight_nodes(model)] == ["plain"]


def test_a_matrix_that_two_products_share_is_stored_once_and_its_floats_go(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="one"),
        helper.make_node("MatMul", ["h", "w"], ["y"], name="two"),
    ]
    source = write(tmp_path / "source.onnx", nodes, {"w": random(DEPTH, DEPTH)})
    form = FORMS[4][0]
    write_weights(source, tmp_path / "both.onnx", {"one": form, "two": form}, store=BlockStore())
    write_weights(source, tmp_path / "half.onnx", {"one": form}, store=BlockStore())

    def names(file: str) -> list[str]:
        return [tensor.name for tensor in onnx.load(str(tmp_path / file)).graph.initializer]

    assert names("both.onnx") == [f"w.4x128.{part}" for part in ("packed", "scales", "zeros")]
    assert names("half.onnx") == ["w", *names("both.onnx")]


def test_errors_of_nodes_are_those_of_their_rounded_matrices(tmp_path: Path) -> None:
    source = write(tmp_path / "source.onnx", [PRODUCTS["MatMul"]], {"w": random(DEPTH, WIDTH)})
    samples = Samples(groups=(SampleGroup(inputs={"x": random(200, DEPTH, seed=4)}),))
    coarse, fine = (
        weight_errors(source, samples, {"product": form}, store=BlockStore())["product"]
        for form in (FORMS[4][0], FORMS[8][0])
    )
    matrix = random(DEPTH, WIDTH)
    lost = restore_blocks(quantise_blocks(matrix, bits=4, block_size=128)) - matrix
    assert coarse == pytest.approx(float(np.square(lost).sum() / np.square(matrix).sum()), rel=0.1)
    assert fine < coarse / 50


def times(value: float) -> Measurement:
    return Measurement(value=value, unit="ratio", interval=Interval(low=value, high=value), num_repetitions=3)


def seconds(value: float) -> Measurement:
    return Measurement(value=value, unit="s", interval=Interval(low=value, high=value), num_repetitions=3)


def work_on(source: Path, *, floor: float, gains: dict[str, NodeGain] | None = None) -> WeightWork:
    """Return a search whose metric is 1 minus the share of the output that is lost."""
    x = random(30, DEPTH, seed=5)
    exact = ask(source, x)

    def score(variant: Variant) -> float:
        return 1 - float(np.linalg.norm(ask(Path(variant.location), x) - exact) / np.linalg.norm(exact))

    baseline = Variant(name="onnx-fp32", format=Format.ONNX, precision=Precision.FP32, location=str(source))
    terms = Terms(
        workshop=Workshop(
            baseline=baseline,
            calibration=Samples(groups=(SampleGroup(inputs={"x": x}),)),
            folder=source.parent,
            reduce_range=False,
        ),
        store=ResultStore(source.parent / "memory"),
        key="test",
        score=score,
        holds=lambda found: found >= floor,
        is_for_speed=gains is not None,
    )
    return WeightWork(terms=terms, gains=gains or {})


def write_uneven(path: Path) -> Path:
    """Write a product that survives 4 bits, behind one that does not: every block of it has one great weight."""
    great = random(DEPTH, DEPTH) * 0.02
    great[::16] += 2.0
    nodes = [
        helper.make_node("MatMul", ["x", "great"], ["h"], name="great"),
        helper.make_node("Relu", ["h"], ["a"], name="relu"),
        helper.make_node("MatMul", ["a", "even"], ["y"], name="even"),
    ]
    even = np.where(random(DEPTH, WIDTH, seed=6) > 0, 1, -1).astype(np.float32)
    return write(path, nodes, {"great": great, "even": even})


def test_in_4_bits_a_node_that_the_floor_needs_has_8(tmp_path: Path) -> None:
    source = write_uneven(tmp_path / "source.onnx")
    work = work_on(source, floor=0.985)
    eight, four = build_weights(work, 8), build_weights(work, 4)
    assert (eight.precision, four.precision) == (Precision.INT8_WEIGHTS, Precision.INT4_WEIGHTS)
    assert work.kept[8] == {"great": FORMS[8][0], "even": FORMS[8][0]}
    assert work.kept[4] == {"great": FORMS[8][0], "even": FORMS[4][1]}
    assert work.terms.score(four) >= 0.985
    assert Path(four.location).stat().st_size < Path(eight.location).stat().st_size < source.stat().st_size
    assert "4 bits in blocks of 32=1 matrix, 8 bits in blocks of 64=1 matrix" in str(four.recipe.steps[-1])
    errors = {item.form: item.error for item in evidence_of(work, "great")}
    assert set(errors) == set(map(str, ALL_FORMS))
    assert [item.is_used for item in evidence_of(work, "great")] == [True, False, False]
    node = next(node for node in load_named(Path(four.location)).graph.node if node.name == "even")
    assert node.op_type == "MatMulNBits"


def test_a_floor_that_allows_nothing_and_a_model_without_matrices_are_said(tmp_path: Path) -> None:
    source = write_uneven(tmp_path / "source.onnx")
    with pytest.raises(NothingGained, match="the limit holds only with every matrix in float"):
        build_weights(work_on(source, floor=1.0), 8)
    assert not (tmp_path / "int8-weights.onnx").exists()
    work = work_on(source, floor=0.0)
    work.terms.workshop.tidy()
    write(source, [helper.make_node("Relu", ["x"], ["y"], name="relu")], {})
    with pytest.raises(NothingToQuantise, match="no MatMul or Gemm with constant weights"):
        build_weights(work, 4)
    assert not weight_nodes(load_named(write_cnn(tmp_path / "cnn.onnx")))[1:]


def test_for_speed_a_node_that_is_not_surely_faster_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forms = {str(form): times(3.0 if form.bits == 4 else 2.0) for form in ALL_FORMS}
    gains = {
        "great": NodeGain(float_s=seconds(1e-3), blocks=dict.fromkeys(forms, times(0.9))),
        "even": NodeGain(float_s=seconds(1e-3), blocks=forms),
    }
    source = write_uneven(tmp_path / "source.onnx")
    monkeypatch.setattr(weighting, "compare_files", lambda *_: times(1.5))
    work = work_on(source, floor=0.9, gains=gains)
    build_weights(work, 8)
    build_weights(work, 4)
    assert work.kept == {8: {"even": FORMS[8][0]}, 4: {"even": FORMS[4][0]}}

    monkeypatch.setattr(weighting, "compare_files", lambda *_: times(0.97))
    with pytest.raises(
        NothingGained, match=r"with 1 of 2 matrices in blocks the model is 0\.97 times as fast as in float"
    ):
        build_weights(replace(work, terms=replace(work.terms, key="not timed yet"), kept={}), 8)


def test_where_no_node_is_faster_nothing_is_made_and_the_best_is_said(tmp_path: Path) -> None:
    slow = NodeGain(float_s=seconds(1e-3), blocks={str(form): times(0.8) for form in ALL_FORMS})
    work = work_on(write_uneven(tmp_path / "source.onnx"), floor=0.9, gains={"great": slow, "even": slow})
    reason = "none of 2 matrices is surely faster with weights in 8 bits in blocks of 64 than in float on this machine"
    with pytest.raises(NothingGained, match=reason):
        build_weights(work, 8)
