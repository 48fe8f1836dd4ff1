"""Smoothing changes nothing in float and makes 8 bits better where channels are uneven."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from forwardpass.core.samples import SampleGroup, Samples
from forwardpass.core.tensors import Array
from forwardpass.core.variants import Format
from forwardpass.optimize.calibration import CalibrationMethod
from forwardpass.optimize.smoothing import Smoothed, plan_smoothing, write_smoothed
from forwardpass.optimize.writers import plan_static, write_dynamic, write_static
from forwardpass.predict import relative_error
from forwardpass.runtimes import RuntimeOptions, open_runtime

NUM_CHANNELS = 16


def normed(is_read_elsewhere: bool) -> list[onnx.NodeProto]:
    """LayerNorm in front of two products that share it, and perhaps a residual that reads it, too."""
    residual = "n" if is_read_elsewhere else "x"
    return [
        helper.make_node("LayerNormalization", ["x", "gamma", "beta"], ["n"]),
        helper.make_node("MatMul", ["n", "w1"], ["a"]),
        helper.make_node("MatMul", ["n", "w2"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["ab"]),
        helper.make_node("Add", ["ab", residual], ["y"]),
    ]


def chain(first: str) -> list[onnx.NodeProto]:
    """Two products with a bias and a ReLU between: the division goes into the first one's weights and bias."""
    start = (
        [helper.make_node("Gemm", ["x", "w1", "beta"], ["a"], transB=1)]
        if first == "Gemm"
        else [helper.make_node("MatMul", ["x", "w1"], ["p"]), helper.make_node("Add", ["beta", "p"], ["a"])]
    )
    return [*start, helper.make_node("Relu", ["a"], ["r"]), helper.make_node("Gemm", ["r", "w2"], ["y"], transB=1)]


def shared() -> list[onnx.NodeProto]:
    """The same weights twice, and a GELU between: nothing can be folded."""
    return [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("Gelu", ["a"], ["g"]),
        helper.make_node("MatMul", ["g", "w1"], ["y"]),
    ]


GRAPHS: dict[str, tuple[Callable[[], list[onnx.NodeProto]], set[str]]] = {
    "norm": (lambda: normed(False), {"n"}),
    "norm-and-residual": (lambda: normed(True), set()),
    "gemm": (lambda: chain("Gemm"), {"r"}),
    "matmul": (lambda: chain("MatMul"), {"r"}),
    "shared": (shared, set()),
}


def write(path: Path, nodes: list[onnx.NodeProto], generator: np.random.Generator, spread: float) -> Path:
    """Write a model whose channels differ in size by up to `spread`."""

    def constant(name: str, *shape: int) -> onnx.TensorProto:
        values = generator.standard_normal(shape) * spread ** generator.uniform(0, 1, shape[-1])
        return numpy_helper.from_array(values.astype(np.float32), name)

    square = (NUM_CHANNELS, NUM_CHANNELS)
    used = {name for node in nodes for name in node.input}
    constants = [constant("gamma", NUM_CHANNELS), constant("beta", NUM_CHANNELS)]
    constants += [constant("w1", *square), constant("w2", *square)]
    shape: tuple[str | int, ...] = ("batch", NUM_CHANNELS)
    graph = helper.make_graph(
        nodes,
        "smooth",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [tensor for tensor in constants if tensor.name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
    return path


def samples(generator: np.random.Generator, spread: float = 1.0) -> Samples:
    values = generator.standard_normal((40, NUM_CHANNELS)) * spread ** np.linspace(0, 1, NUM_CHANNELS)
    return Samples(groups=(SampleGroup(inputs={"x": values.astype(np.float32)}),))


def answer(path: Path, given_samples: Samples) -> Array:
    return open_runtime(Format.ONNX, str(path), options=RuntimeOptions()).run(given_samples.groups[0].inputs)["y"]


@settings(max_examples=25)
@given(st.sampled_from(sorted(GRAPHS)), st.integers(0, 2**32 - 1), st.floats(1, 1000), st.floats(-2, 2))
def test_a_smoothed_model_answers_as_before_whatever_is_divided_by(
    tmp_path_factory: pytest.TempPathFactory, name: str, seed: int, spread: float, exponent: float
) -> None:
    generator = np.random.default_rng(seed)
    folder = tmp_path_factory.getbasetemp()
    make, folds = GRAPHS[name]
    source = write(folder / "smooth-source.onnx", make(), generator, spread)
    model = onnx.load(str(source))
    constants = {tensor.name for tensor in model.graph.initializer}
    read = {n.input[0] for n in model.graph.node if n.op_type in ("MatMul", "Gemm") and n.input[1] in constants}
    factors = {it: (10 ** (exponent * generator.uniform(0, 1, NUM_CHANNELS))).astype(np.float32) for it in read}
    done = write_smoothed(source, folder / "smoothed.onnx", factors)
    assert done == Smoothed(num_folded=len(folds), num_inserted=len(read) - len(folds))
    onnx.checker.check_model(onnx.load(str(folder / "smoothed.onnx")), full_check=True)
    given_samples = samples(generator)
    assert relative_error(answer(folder / "smoothed.onnx", given_samples), answer(source, given_samples)) < 1e-4


def static(source: Path, target: Path, calibration: Samples) -> None:
    plan = plan_static(source, calibration)
    write_static(source, target, plan, method=CalibrationMethod.MINMAX, reduce_range=False)


def dynamic(source: Path, target: Path, calibration: Samples) -> None:
    write_dynamic(source, target, reduce_range=False)


@pytest.mark.parametrize("quantise", [static, dynamic])
@pytest.mark.parametrize("name", ["norm", "gemm"])
def test_with_uneven_channels_eight_bits_come_nearer_to_float(
    quantise: Callable[[Path, Path, Samples], None], name: str, tmp_path: Path
) -> None:
    """Products of outliers would drown the rest: the weights of large channels are small, as training makes them."""
    generator = np.random.default_rng(8)
    source = write(tmp_path / "float.onnx", GRAPHS[name][0](), generator, spread=1.0)
    model = onnx.load(str(source))
    sizes = 100 ** np.linspace(0, 1, NUM_CHANNELS)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if name == "norm":
            scaled = values * sizes if tensor.name in ("gamma", "beta") else values / sizes[:, None]
        else:
            scaled = values / sizes if tensor.name == "w1" else values
        tensor.CopyFrom(numpy_helper.from_array(scaled.astype(np.float32), tensor.name))
    onnx.save(model, str(source))
    calibration = samples(generator, spread=1.0 if name == "norm" else 100.0)
    factors = plan_smoothing(source, calibration, reduce_range=False)
    write_smoothed(source, tmp_path / "smoothed.onnx", factors)
    exact, errors = answer(source, calibration), []
    for origin in (source, tmp_path / "smoothed.onnx"):
        quantise(origin, tmp_path / "int8.onnx", calibration)
        errors.append(relative_error(answer(tmp_path / "int8.onnx", calibration), exact))
    assert errors[1] < errors[0] / 2


def test_even_channels_are_left_alone(tmp_path: Path) -> None:
    generator = np.random.default_rng(8)
    source = write(tmp_path / "float.onnx", chain("Gemm"), generator, spread=1.0)
    assert plan_smoothing(source, samples(generator), reduce_range=False) == {}
