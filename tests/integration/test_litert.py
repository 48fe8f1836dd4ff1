"""LiteRT: the runtime on a file made by hand, and the converter in its own environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

import forwardpass
from forwardpass.convert import TorchSource, convert
from forwardpass.convert.environments import IsolatedEnvironment
from forwardpass.core.samples import SampleGroup, Samples
from forwardpass.core.tensors import Array, Signature, TensorSpec
from forwardpass.core.variants import Format, Precision
from forwardpass.errors import EnvironmentUnavailable, ExportFailed, InvalidModel, InvalidSamples, SourceNotFound
from forwardpass.runtimes import RuntimeOptions, litert_remark, open_runtime
from forwardpass.runtimes.litert import with_signature
from tests.integration import conversion_sources as sources

WEIGHTS = np.array([[1, 2, 3], [4, 5, 6]], np.float32)


def silent(text: str, *, done: float) -> None:
    assert 0 <= done <= 1


def tensor(name: str, shape: tuple[int, ...], buffer: int, dynamic: tuple[int, ...] | None = None) -> Any:
    made = schema.TensorT()
    made.name, made.shape, made.buffer, made.type = name, list(shape), buffer, schema.TensorType.FLOAT32
    made.shapeSignature = None if dynamic is None else list(dynamic)
    return made


def write_product(path: Path) -> Path:
    """Write `x [batch, 3] -> y [batch, 2]`, the product with constant weights, as LiteRT and with no signature."""
    import flatbuffers

    options = schema.FullyConnectedOptionsT()
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0, 1, -1], [2]
    operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.FullyConnectedOptions, options
    graph = schema.SubGraphT()
    graph.tensors = [tensor("x", (1, 3), 0, (-1, 3)), tensor("w", WEIGHTS.shape, 1), tensor("y", (1, 2), 0, (-1, 2))]
    graph.inputs, graph.outputs, graph.operators = [0], [2], [operator]
    constants = schema.BufferT()
    constants.data = np.frombuffer(WEIGHTS.tobytes(), np.uint8)
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version = 1
    model = schema.ModelT()
    model.version, model.subgraphs, model.operatorCodes = 3, [graph], [code]
    model.buffers = [schema.BufferT(), constants]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


@pytest.fixture
def product(tmp_path: Path) -> Path:
    return write_product(tmp_path / "product.tflite")


def test_rows_in_any_number_are_multiplied(product: Path) -> None:
    runtime = open_runtime(Format.LITERT, str(product), options=RuntimeOptions())
    assert runtime.signature.inputs == (TensorSpec(name="x", dtype="float32", shape=("batch", 3)),)
    assert runtime.signature.outputs == (TensorSpec(name="y", dtype="float32", shape=("batch", 2)),)
    generator = np.random.default_rng(0)
    kept = []
    for num_rows in (1, 5, 2, 2, 1):
        x = generator.standard_normal((num_rows, 3)).astype(np.float32)
        kept.append((x, runtime.run({"x": x})["y"]))
    for x, answer in kept:  # all at the end: no answer was written over
        np.testing.assert_allclose(answer, x @ WEIGHTS.T, rtol=1e-5, atol=1e-5)


def test_a_wrong_shape_leaves_the_runtime_usable(product: Path) -> None:
    runtime = open_runtime(Format.LITERT, str(product), options=RuntimeOptions())
    with pytest.raises(RuntimeError, match="dimension 1"):
        runtime.run({"x": np.zeros((1, 4), np.float32)})
    assert runtime.run({"x": np.ones((1, 3), np.float32)})["y"].tolist() == [[6, 15]]


def test_a_signature_travels_inside_the_file_and_changes_no_answer(product: Path) -> None:
    named = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 3)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 2)),),
    )
    product.write_bytes(with_signature(product.read_bytes(), named))
    assert open_runtime(Format.LITERT, str(product), options=RuntimeOptions()).signature == named
    interpreter = Interpreter(str(product))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], np.ones((1, 3), np.float32))
    interpreter.invoke()
    assert interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).tolist() == [[6, 15]]


def test_profile_takes_the_file(product: Path) -> None:
    settings = forwardpass.ProfileSettings(
        batch_sizes=(1, 2), thread_counts=(1,), num_rounds=3, round_s=0.01, num_cold_starts=1
    )
    (profile,) = forwardpass.profile_model(product, settings=settings).profiles
    assert profile.runtime == "litert"


def test_no_file_and_no_litert_file(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match="a LiteRT file"):
        open_runtime(Format.LITERT, str(tmp_path / "none.tflite"), options=RuntimeOptions())
    (tmp_path / "bad.tflite").write_bytes(b"not a model at all")
    with pytest.raises(InvalidModel, match="LiteRT cannot load it"):
        open_runtime(Format.LITERT, str(tmp_path / "bad.tflite"), options=RuntimeOptions())


def test_the_library_says_nothing_of_itself_to_users(product: Path) -> None:
    code = (
        "import sys; from forwardpass.core.variants import Format; "
        "from forwardpass.runtimes import RuntimeOptions, open_runtime; "
        "open_runtime(Format.LITERT, sys.argv[1], options=RuntimeOptions())"
    )
    command = [sys.executable, "-c", code, str(product)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (finished.stdout, finished.stderr) == ("", "")


def test_what_is_no_remark_comes_through(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Interpreter:
        def __init__(self, **_: object) -> None:
            os.write(2, b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\n")

        def allocate_tensors(self) -> None:
            os.write(2, b"ERROR: no memory for the tensors\n")

    monkeypatch.setattr(litert_remark, "Interpreter", Interpreter)
    litert_remark.hear_remark()
    os.write(2, b"and later\n")
    assert capfd.readouterr().err == "ERROR: no memory for the tensors\nand later\n"


# --- the environment -----------------------------------------------------------------------------------------------


def test_an_environment_that_cannot_be_installed_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    environment = IsolatedEnvironment(name="nothing", packages=("no-such-package-here==1",), size_mb=1)
    program = tmp_path / "program.py"
    with pytest.raises(EnvironmentUnavailable, match="No matching distribution found for no-such-package-here"):
        environment.run(program, tmp_path, {}, source="model", progress=silent)


def test_a_program_in_an_environment_answers_by_files_and_fails_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    environment = IsolatedEnvironment(name="empty", packages=("--no-index",), size_mb=1)
    folder = tmp_path / "cache" / "forwardpass" / "environments"
    made = environment._ensure  # installing nothing is refused by pip, so the environment is completed by hand
    with pytest.raises(EnvironmentUnavailable):
        made(silent)
    (only,) = folder.iterdir()
    (only / "complete").write_text("--no-index")
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text(
        "import sys, pathlib\nf = pathlib.Path(sys.argv[1])\n(f / 'out').write_text((f / 'job.json').read_text())"
    )
    bad.write_text(
        "import sys, pathlib\n(pathlib.Path(sys.argv[1]) / 'failure.txt').write_text('no such op')\nsys.exit(1)"
    )
    environment.run(good, tmp_path, {"a": 1}, source="model", progress=silent)
    assert (tmp_path / "out").read_text() == '{"a": 1}'
    with pytest.raises(ExportFailed, match=r"Cannot convert 'model': empty does not take it \(no such op\)"):
        environment.run(bad, tmp_path, {}, source="model", progress=silent)


# --- the converter, which needs its environment --------------------------------------------------------------------


def litert_answers(path: str, **inputs: Array) -> dict[str, Array]:
    """Run a file with LiteRT's own calls and nothing of ours."""
    return dict(Interpreter(path).get_signature_runner()(**inputs))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_tokens_of_any_length_answer_like_the_source(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    samples = Samples(
        groups=tuple(SampleGroup(inputs={"ids": generator.integers(0, 20, (6, size))}) for size in (3, 7))
    )
    source = TorchSource(reference="tests.integration.conversion_sources:tokens")
    conversion = convert(source, samples, to=Format.LITERT, out=tmp_path / "m.tflite", progress=silent)
    assert [spec.shape for spec in conversion.signature.inputs] == [("batch", "sequence")]
    ids = generator.integers(0, 20, (4, 5))
    import torch

    with torch.inference_mode():
        expected = sources.tokens().eval()(torch.from_numpy(ids))
    answers = litert_answers(conversion.variant.location, ids=ids)
    for name, reference in zip(("output_0", "output_1"), expected, strict=True):
        np.testing.assert_allclose(answers[name], reference.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("precision", [Precision.INT8_DYNAMIC, Precision.INT8_STATIC])
def test_eight_bits_are_smaller_and_near(precision: Precision, tmp_path: Path) -> None:
    images = np.random.default_rng(1).standard_normal((60, 3, 12, 12)).astype(np.float32)
    samples = Samples(groups=(SampleGroup(inputs={"pixels": images}),))
    sizes, answers = {}, {}
    for chosen in (Precision.FP32, precision):
        out = tmp_path / f"{chosen.value}.tflite"
        convert(sources.wide_network(), samples, to=Format.LITERT, precision=chosen, out=out, progress=silent)
        sizes[chosen] = out.stat().st_size
        answers[chosen] = litert_answers(str(out), pixels=images[:5])["scores"]
    assert sizes[precision] < 0.5 * sizes[Precision.FP32]
    error = np.linalg.norm(answers[precision] - answers[Precision.FP32]) / np.linalg.norm(answers[Precision.FP32])
    assert 0 < error < 0.1


def test_static_eight_bits_need_samples(tmp_path: Path) -> None:
    from tests.models import write_mlp

    source = write_mlp(tmp_path / "mlp.onnx")
    out = tmp_path / "mlp.tflite"
    with pytest.raises(InvalidSamples, match="static INT8 is calibrated with samples"):
        convert(source, None, to=Format.LITERT, precision=Precision.INT8_STATIC, out=out, progress=silent)
