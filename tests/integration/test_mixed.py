"""Mixed precision on real files: the node that 8 bits break is found, stays in float, and the floor holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from forwardpass.core.metrics import METRICS
from forwardpass.core.samples import SampleGroup, Samples, split_samples
from forwardpass.core.slo import QualityFloor
from forwardpass.core.variants import Format, Precision, Variant
from forwardpass.optimize import OptimizeSettings, Target, Verdict, optimize_model
from forwardpass.optimize.calibration import CalibrationMethod
from forwardpass.optimize.sensitivity import node_errors
from forwardpass.optimize.writers import plan_static
from forwardpass.profile import ProfileSettings
from tests.models import write_cnn, write_mlp

TINY = ProfileSettings(
    batch_sizes=(1,), thread_counts=(1,), num_rounds=2, round_s=0.01, num_cold_starts=1, audit_budget_s=0.05
)


def silent(text: str, *, done: float) -> None:
    assert 0 <= done <= 1


def images(sizes: Sequence[float]) -> Samples:
    """Return images whose channels have these sizes."""
    pixels = np.random.default_rng(2).standard_normal((100, 3, 8, 8)) * np.array(sizes)[:, None, None]
    return Samples(groups=(SampleGroup(inputs={"pixels": pixels.astype(np.float32)}),))


@pytest.fixture
def poisoned(tmp_path: Path) -> Path:
    """A network whose first convolution reads a channel that is large and counts for little."""
    path = write_cnn(tmp_path / "cnn.onnx")
    model = onnx.load(str(path))
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == "w1")
    values = numpy_helper.to_array(weights).copy()
    values[:, 0] /= 1000
    weights.CopyFrom(numpy_helper.from_array(values, "w1"))
    onnx.save(model, str(path))
    return path


UNEVEN = images([1000, 1, 1])


def test_one_pass_ranks_the_node_that_eight_bits_break_first(poisoned: Path) -> None:
    plan = plan_static(poisoned, UNEVEN)
    errors = node_errors(poisoned, UNEVEN, plan, method=CalibrationMethod.MINMAX, reduce_range=False)
    assert set(errors) == set(plan.nodes)
    (first, worst), (_, other) = list(errors.items())[:2]
    model = onnx.load(str(poisoned))
    assert first == next(node.name for node in model.graph.node if node.op_type == "Conv")
    assert worst > 0.1 > 0.01 > other


def test_without_rounding_there_is_no_error(tmp_path: Path) -> None:
    """Weights and activations on the grid of 8 bits stay as they are."""
    path = write_mlp(tmp_path / "mlp.onnx")
    model = onnx.load(str(path))
    generator = np.random.default_rng(1)
    for tensor in model.graph.initializer:
        values = generator.integers(-127, 128, tuple(tensor.dims)).astype(np.float32)
        values[:1] = 127  # every column has its scale from this row
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, str(path))
    pixels = generator.integers(0, 256, (30, 64)).astype(np.float32)
    pixels[:, 0], pixels[:, 1] = 0, 255
    grid = Samples(groups=(SampleGroup(inputs={"pixels": pixels}),))
    plan = plan_static(path, grid)
    errors = node_errors(path, grid, plan, method=CalibrationMethod.MINMAX, reduce_range=False)
    assert errors[plan.nodes[0]] < 1e-12


def test_the_worst_node_stays_in_float_until_the_floor_holds(poisoned: Path, tmp_path: Path) -> None:
    model = Variant(name="onnx-fp32", format=Format.ONNX, precision=Precision.FP32, location=str(poisoned))
    floor = QualityFloor(max_drop=0.001, is_relative=True)
    settings = OptimizeSettings(profile=TINY, floor=floor, target=Target.SIZE)
    (tmp_path / "work").mkdir()
    splits = split_samples(UNEVEN, origin="test")
    result = optimize_model(
        model, model, splits, METRICS["cosine"], workdir=tmp_path / "work", settings=settings, progress=silent
    )
    whole, mixed = result.find("int8-static"), result.find("int8-mixed")
    assert whole.verdict is Verdict.REJECTED
    assert mixed.validation is not None
    assert mixed.validation.value >= result.floor_score
    parameters = dict(mixed.variant.recipe.steps[-1].parameters)
    assert (parameters["num_nodes"], str(parameters["kept_in_float"]).split(", ")[1:]) == (1, ["depthwise"])
    written = onnx.load(mixed.variant.location)
    kept = [tensor.name for tensor in written.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    assert "w1" in kept
    assert "w3" not in kept
    assert {path.name for path in (tmp_path / "work").iterdir()} >= {"int8-mixed.onnx"}
    assert not list((tmp_path / "work").glob("*folded*"))


def test_where_only_float_holds_the_floor_there_is_no_mixed_variant(poisoned: Path, tmp_path: Path) -> None:
    model = Variant(name="onnx-fp32", format=Format.ONNX, precision=Precision.FP32, location=str(poisoned))
    floor = QualityFloor(max_drop=0.0, is_relative=True)
    settings = OptimizeSettings(profile=TINY, floor=floor, target=Target.SIZE)
    (tmp_path / "work").mkdir()
    splits = split_samples(UNEVEN, origin="test")
    result = optimize_model(
        model, model, splits, METRICS["relative-error"], workdir=tmp_path / "work", settings=settings, progress=silent
    )
    mixed = result.find("int8-mixed")
    assert (mixed.verdict, mixed.reason) == (
        Verdict.NEEDLESS,
        "Nothing would be gained: the limit holds only with every node in float.",
    )
    assert not (tmp_path / "work" / "int8-mixed.onnx").exists()
