"""The audit of the same answer on ONNX Runtime and PyTorch themselves, against a second opinion."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from forwardpass.core.protocols import Runtime
from forwardpass.core.tensors import Array, Signature, Tensors
from forwardpass.core.variants import BatchInvariance, Format, Precision, Variant
from forwardpass.profile import (
    InvarianceAudit,
    ProfileSettings,
    VariantProfile,
    audit_invariance,
    audit_variants,
    profile_variants,
)
from forwardpass.runtimes import RuntimeOptions, open_runtime
from forwardpass.runtimes.onnx import session_options
from forwardpass.runtimes.options import num_available_cores
from tests.models import write_mlp

NUM_INPUTS, NUM_OUTPUTS = 512, 64
IS_X86 = platform.machine() in ("x86_64", "AMD64")


class Unpacked:
    """A model in a session that does not pack its weights in advance, which forwardpass never opens."""

    name = "onnxruntime"
    version = ort.__version__

    def __init__(self, path: Path):
        settings = session_options(RuntimeOptions(num_threads=1))
        settings.add_session_config_entry("session.disable_prepacking", "1")
        self._session = ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        self.signature = onnx_runtime(path).signature

    def run(self, tensors: Tensors) -> dict[str, Array]:
        names = [spec.name for spec in self.signature.outputs]
        return dict(zip(names, self._session.run(names, dict(tensors)), strict=True))


class Eager:
    """A linear layer of PyTorch, not compiled and not exported."""

    name = "torch"
    version = torch.__version__

    def __init__(self, signature: Signature):
        torch.manual_seed(0)
        self._layer = torch.nn.Linear(NUM_INPUTS, NUM_OUTPUTS)
        self.signature = signature

    def run(self, tensors: Tensors) -> dict[str, Array]:
        with torch.inference_mode():
            return {"y": self._layer(torch.from_numpy(tensors["x"])).numpy()}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def onnx_runtime(path: Path) -> Runtime:
    return open_runtime(Format.ONNX, str(path), options=RuntimeOptions(num_threads=1))


def write_graph(
    path: Path,
    nodes: list[onnx.NodeProto],
    constants: dict[str, Array],
    *,
    num_inputs: int = NUM_INPUTS,
    num_outputs: int = NUM_OUTPUTS,
) -> Path:
    """Write `x [batch, num_inputs] -> y [batch, num_outputs]`."""
    graph = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", num_inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", num_outputs])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def weights(num_inputs: int = NUM_INPUTS, num_outputs: int = NUM_OUTPUTS) -> Array:
    drawn = np.random.default_rng(0).standard_normal((num_inputs, num_outputs))
    return (drawn / np.sqrt(num_inputs)).astype(np.float32)


def rows(num_rows: int = 12, num_inputs: int = NUM_INPUTS, *, seed: int = 1) -> dict[str, Array]:
    return {"x": np.random.default_rng(seed).standard_normal((num_rows, num_inputs)).astype(np.float32)}


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    return write_graph(tmp_path / "linear.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weights()})


def audit(runtime: Runtime, pool: Tensors) -> InvarianceAudit:
    return audit_invariance(runtime, [pool], budget_s=60)


def answers_in_random_batches(
    runtime: Runtime, sizes: tuple[int, ...], *, num_batches: int, seed: int
) -> dict[int, set[bytes]]:
    """Return the different answers that each of a few rows got in batches that the audit has not seen."""
    generator = np.random.default_rng(seed)
    (name,) = (spec.name for spec in runtime.signature.inputs)
    (num_inputs,) = (size for size in runtime.signature.inputs[0].shape if isinstance(size, int))
    (output,) = (spec.name for spec in runtime.signature.outputs)
    pool = generator.standard_normal((10, num_inputs)).astype(np.float32)
    seen: dict[int, set[bytes]] = {}
    for _ in range(num_batches):
        chosen = generator.integers(len(pool), size=generator.choice(sizes))
        is_target = chosen < 5
        batch = np.where(is_target[:, None], pool[chosen], pool[chosen] * generator.choice([0, 1, 50]))
        answer = runtime.run({name: batch.astype(np.float32)})[output]
        for position in np.flatnonzero(is_target):
            seen.setdefault(int(chosen[position]), set()).add(answer[position].tobytes())
    return seen


def test_a_float_model_with_packed_weights_is_bitwise_as_random_batches_confirm(linear: Path) -> None:
    runtime = onnx_runtime(linear)
    found = audit(runtime, rows())
    assert (found.verdict, found.gaps) == (BatchInvariance.BITWISE, ())
    seen = answers_in_random_batches(runtime, tuple(range(1, 34)), num_batches=200, seed=7)
    assert all(len(answers) == 1 for answers in seen.values())


@pytest.mark.parametrize("kind", ["unpacked weights", "PyTorch eager"])
def test_the_sizes_that_are_named_agree_in_random_batches_too(linear: Path, kind: str) -> None:
    runtime = Unpacked(linear) if kind == "unpacked weights" else Eager(onnx_runtime(linear).signature)
    found = audit(runtime, rows())
    assert found.max_difference < 1e-5
    assert found.verdict is not BatchInvariance.INTERFERENCE
    if IS_X86 and kind == "unpacked weights":  # a kernel of its own for a single row
        assert found.exact_batch_sizes == tuple(range(2, 34))
    if found.verdict is BatchInvariance.FIXED_SHAPES:
        seen = answers_in_random_batches(runtime, found.exact_batch_sizes, num_batches=200, seed=7)
        assert all(len(answers) == 1 for answers in seen.values())
        everywhere = answers_in_random_batches(runtime, tuple(range(1, 34)), num_batches=400, seed=7)
        assert any(len(answers) > 1 for answers in everywhere.values())


@pytest.mark.skipif(not IS_X86, reason="other processors have no kernel of its own for a single row")
def test_a_tie_that_rounding_decides_flips_with_the_batch_size_and_is_counted(tmp_path: Path) -> None:
    """Two scores that are the same sum, computed by two kernels: only rounding tells which is greater."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["all"]),
        helper.make_node("Gather", ["all", "first"], ["product"], axis=1),
        helper.make_node("Mul", ["x", "row"], ["products"]),
        helper.make_node("ReduceSum", ["products", "last"], ["sum"], keepdims=1),
        helper.make_node("Concat", ["product", "sum"], ["y"], axis=1),
    ]
    constants = {"w": weights(), "row": weights()[:, :1].T.copy(), "first": np.array([0]), "last": np.array([1])}
    runtime = Unpacked(write_graph(tmp_path / "tie.onnx", nodes, constants, num_outputs=2))
    found = audit(runtime, rows(32))
    assert found.max_difference < 1e-5
    assert found.num_flips > 0
    assert found.verdict is BatchInvariance.FIXED_SHAPES, "beyond the tolerance of no flip, but the same among sizes"


def test_dynamic_quantisation_is_interference(tmp_path: Path) -> None:
    quantize_dynamic(str(write_mlp(tmp_path / "mlp.onnx")), str(tmp_path / "int8.onnx"), weight_type=QuantType.QUInt8)
    found = audit(onnx_runtime(tmp_path / "int8.onnx"), {"pixels": rows(8, 64)["x"]})
    assert found.verdict is BatchInvariance.INTERFERENCE
    assert found.max_difference > 0.01


def test_normalising_over_the_batch_is_interference(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x", "first"], ["mean"], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["centred"]),
        helper.make_node("MatMul", ["centred", "w"], ["y"]),
    ]
    path = write_graph(tmp_path / "centred.onnx", nodes, {"w": weights(), "first": np.array([0])})
    assert audit(onnx_runtime(path), rows()).verdict is BatchInvariance.INTERFERENCE


# --- across threads and processes ----------------------------------------------------------------------------------


def profile(path: Path, pool: Tensors, *, thread_counts: tuple[int, ...] = (1,)) -> VariantProfile:
    settings = ProfileSettings(
        batch_sizes=(1,),
        thread_counts=(1,),
        num_rounds=3,
        round_s=0.002,
        num_cold_starts=2,
        audit_budget_s=2.0,
        audit_thread_counts=thread_counts,
    )
    calls = {1: ({name: array[:1] for name, array in pool.items()},), len(pool["x"]): (dict(pool),)}
    (found,) = profile_variants([variant_of(path)], calls, settings=settings, progress=silent)
    return found


def variant_of(path: Path) -> Variant:
    return Variant(name="made", format=Format.ONNX, precision=Precision.FP32, location=str(path))


def silent(text: str, *, done: float) -> None:
    assert text
    assert done <= 1


def test_an_audit_by_itself_covers_everything_and_says_with_how_many_threads(linear: Path) -> None:
    (found,) = audit_variants(
        [variant_of(linear)], {12: (rows(),)}, settings=ProfileSettings.quick().with_full_audit(60), progress=silent
    )
    assert (found.verdict, found.gaps) == (BatchInvariance.BITWISE, ())
    assert found.covered_batch_sizes == tuple(range(1, 34))
    assert found.thread_counts == tuple(range(1, num_available_cores() + 1))
    assert (found.is_same_in_fresh_processes, found.num_fresh_processes) == (True, 2)


def test_a_model_that_rolls_dice_differs_in_a_fresh_process_and_from_itself(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("RandomNormalLike", ["x"], ["noise"], scale=1e-6),
        helper.make_node("Add", ["x", "noise"], ["noisy"]),
        helper.make_node("MatMul", ["noisy", "w"], ["y"]),
    ]
    found = profile(write_graph(tmp_path / "dice.onnx", nodes, {"w": weights()}), rows(4)).invariance
    assert found.verdict is BatchInvariance.TOLERANCE
    assert found.is_same_in_fresh_processes is False


@pytest.mark.skipif(not IS_X86, reason="other processors split a product of unpacked weights in other ways")
def test_weights_computed_at_run_time_differ_with_the_number_of_threads(tmp_path: Path) -> None:
    """The number of columns that a thread gets decides how the sum is cut, where weights are not packed."""
    num_inputs = 3072
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
        helper.make_node("Add", ["w", "nothing"], ["late"]),
        helper.make_node("MatMul", ["x", "late"], ["y"]),
    ]
    constants = {"w": weights(num_inputs), "zero": np.array(0, np.float32)}
    path = write_graph(tmp_path / "late.onnx", nodes, constants, num_inputs=num_inputs)
    found = profile(path, rows(4, num_inputs), thread_counts=(1, 2)).invariance
    assert found.thread_counts == (1, 2)
    assert found.differing_thread_counts == (2,)
    assert found.is_same_across_threads is False
    assert found.is_same_in_fresh_processes
    assert found.verdict is BatchInvariance.FIXED_SHAPES
    assert 1 not in found.exact_batch_sizes
    for num_threads in found.thread_counts:
        runtime = open_runtime(Format.ONNX, str(path), options=RuntimeOptions(num_threads=num_threads))
        seen = answers_in_random_batches(runtime, found.exact_batch_sizes, num_batches=50, seed=7)
        assert all(len(answers) == 1 for answers in seen.values()), f"with {num_threads} threads"
