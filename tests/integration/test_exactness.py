"""A variant whose last bits depend on the batch answers in the user's process as from the server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import forwardpass
from forwardpass.core.latency import LatencyPoint, LatencyTable
from forwardpass.core.tensors import Array
from forwardpass.core.variants import BatchInvariance, Format, Precision, Variant
from forwardpass.predict import PackingList, SameAnswer, VariantToPack, pack_bundle
from tests.e2e.serving import infer_body, output, serve_settings, serving
from tests.models import MACHINE

SIZES = (2, 3, 8)


def write_size_sensitive(path: Path) -> Path:
    """Write a model that adds to every value the last bit's worth of how many rows it was run with."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], start=0, end=1),
        helper.make_node("Cast", ["shape"], ["size"], to=TensorProto.FLOAT),
        helper.make_node("Min", ["size", "two"], ["kind"]),
        helper.make_node("Mul", ["kind", "bit"], ["error"]),
        helper.make_node("Add", ["x", "error"], ["y"]),
    ]
    constants = {"two": np.float32(2), "bit": np.float32(2**-22)}
    graph = helper.make_graph(
        nodes,
        "sizes",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exactness")
    model = write_size_sensitive(folder / "sizes.onnx")
    points = tuple(LatencyPoint(batch_size=n, p50_s=1e-3 + n * 1e-6, p95_s=2e-3) for n in (1, *SIZES))
    packed = VariantToPack(
        variant=Variant(name="v", format=Format.ONNX, precision=Precision.FP32, location=str(model)),
        invariance=BatchInvariance.FIXED_SHAPES,
        exact_batch_sizes=SIZES,
        latency=(LatencyTable(num_threads=1, points=points),),
    )
    golden: list[dict[str, Array]] = [{"x": np.ones((2, 2), np.float32)}]
    pack_bundle(folder / "bundle", PackingList(name="sizes", variants=[packed], golden_inputs=golden, machine=MACHINE))
    return folder / "bundle"


@pytest.mark.parametrize("same_answer", [SameAnswer.AFFORDABLE, SameAnswer.BITWISE])
def test_an_answer_is_the_servers_to_the_last_bit_however_many_rows_are_asked_about(
    bundle: Path, same_answer: SameAnswer
) -> None:
    local = forwardpass.load(bundle, same_answer=same_answer)
    rows = np.linspace(1, 1.9, 2 * 13, dtype=np.float32).reshape(13, 2)
    with serving(bundle, serve_settings(same_answer=same_answer)) as running:
        for num_rows in (1, 2, 4, 13):
            theirs = output(running.ask("POST", "/v2/models/sizes/infer", infer_body({"x": rows[:num_rows]})))
            ours = local.predict(rows[:num_rows])["y"]
            np.testing.assert_array_equal(ours, theirs)
            np.testing.assert_array_equal(ours, local.predict(rows)["y"][:num_rows])


def test_up_to_rounding_a_call_runs_as_it_is(bundle: Path) -> None:
    local = forwardpass.load(bundle, same_answer=SameAnswer.ROUNDING)
    one = np.ones((1, 2), np.float32)
    np.testing.assert_array_equal(local.predict(one)["y"], one + np.float32(2**-22))
    exact = forwardpass.load(bundle).predict(one)["y"]
    np.testing.assert_array_equal(exact, one + np.float32(2**-21))
