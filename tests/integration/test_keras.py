"""Keras and TensorFlow as sources: what is refused, what is compared, and the converter in its own environment."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import forwardpass
from forwardpass.convert import keras, plain_model
from forwardpass.core.protocols import Progress
from forwardpass.core.samples import SampleGroup, Samples
from forwardpass.core.tensors import Array
from forwardpass.errors import ExportFailed, InvalidModel, InvalidSamples, ParityFailed
from tests.models import write_mlp

HERE = Path(__file__).parent


def silent(text: str, *, done: float) -> None:
    assert 0 <= done <= 1


class FakeEnvironment:
    """Stands for the process with TensorFlow: an ONNX file comes out, and answers that are `off` by so much."""

    def __init__(self, *, off: float = 0.0) -> None:
        self.off = off
        self.calls: list[str] = []

    def run(self, program: Path, folder: Path, job: Mapping[str, object], *, source: str, progress: Progress) -> None:
        """Do what the program does, by its description."""
        assert program.is_file()
        assert Path(str(job["model"])).is_absolute()
        session = onnxruntime.InferenceSession(str(write_mlp(folder / "model.onnx")))
        with np.load(folder / "calls.npz") as archive:
            self.calls = archive.files
            given = {key: archive[key] for key in archive.files}
        recorded: dict[str, Array] = {}
        for key, pixels in given.items():
            number = key.partition(":")[0]
            recorded[f"{number}:in:pixels"] = pixels
            recorded[f"{number}:out:scores"] = session.run(None, {"pixels": pixels})[0] + np.float32(self.off)
        np.savez(folder / "answers.npz", allow_pickle=False, **recorded)


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "model.keras"
    path.write_bytes(b"read by the fake alone")
    return str(path)


def rows() -> Samples:
    pixels = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    return Samples(groups=(SampleGroup(inputs={"pixels": pixels}),))


def test_answers_of_the_other_process_are_held_against_the_onnx_file(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = FakeEnvironment()
    monkeypatch.setattr(keras, "ENVIRONMENT", environment)
    with plain_model(model, rows(), trust_pickle=False, progress=silent) as plain:
        assert Path(plain.path).name == "model.onnx"
        assert plain.exporter == "tf2onnx"
        assert [check.num_rows for check in plain.parity] == [1, 2, 3, 5, 8]
    assert not Path(plain.path).exists()
    assert environment.calls == [f"{number}:pixels" for number in range(5)]


def test_a_file_that_answers_differently_is_not_given(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras, "ENVIRONMENT", FakeEnvironment(off=1.0))
    with (
        pytest.raises(ParityFailed, match="scores"),
        plain_model(model, rows(), trust_pickle=False, progress=silent),
    ):
        pass


def test_the_older_format_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "old.h5"
    path.write_bytes(b"")
    with (
        pytest.raises(InvalidModel, match=r"save it as \.keras"),
        plain_model(str(path), None, trust_pickle=False, progress=silent),
    ):
        pass


def test_what_is_not_of_keras_stays_what_it_is(tmp_path: Path) -> None:
    source = str(write_mlp(tmp_path / "mlp.onnx"))
    with plain_model(source, None, trust_pickle=False, progress=silent) as plain:
        assert (plain.path, plain.parity) == (source, ())


# --- the converter, which needs its environment --------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that Keras itself has written, in the environment of the converter."""
    folder = tmp_path_factory.mktemp("keras")
    python = keras.ENVIRONMENT._ensure(silent)
    command = [str(python), "-I", str(HERE / "keras_models.py"), str(folder)]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "inputs", "outputs"),
    [
        ("images.keras", ("pixels",), ("probs",)),
        ("texts.keras", ("extra", "ids"), ("kind", "score")),
        ("product", ("x",), ("y",)),
    ],
)
def test_models_answer_as_keras_and_tensorflow_say(
    models: Path, name: str, inputs: tuple[str, ...], outputs: tuple[str, ...], tmp_path: Path
) -> None:
    out = tmp_path / "model.onnx"
    conversion = forwardpass.convert_model(models / name, out=out)
    assert conversion.exporter == "tf2onnx"
    assert conversion.worst_difference < 1e-5
    assert {spec.name: spec.shape[0] for spec in conversion.signature.inputs} == dict.fromkeys(inputs, "batch")
    session = onnxruntime.InferenceSession(str(out))
    with np.load(models / "calls.npz") as calls, np.load(models / "answers.npz") as expected:
        answers = session.run(list(outputs), {tensor: calls[tensor] for tensor in inputs})
        for output, answer in zip(outputs, answers, strict=True):
            np.testing.assert_allclose(answer, expected[output], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_code_in_a_file_is_not_run_and_samples_that_do_not_fit_are_named(models: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportFailed, match="it holds Python code, such as a Lambda layer, which is never run"):
        forwardpass.convert_model(models / "lambda.keras", out=tmp_path / "model.onnx")
    np.savez(tmp_path / "samples.npz", image=np.random.default_rng(0).random((30, 9, 9, 3), np.float32))
    with pytest.raises(InvalidSamples, match=r"arrays image, and the model takes pixels float32\[batch, any, any, 3\]"):
        forwardpass.convert_model(models / "images.keras", out=tmp_path / "m.onnx", data=str(tmp_path / "samples.npz"))
