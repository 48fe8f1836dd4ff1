"""`forwardpass.load`: a bundle in the user's own process, with the same checks as the server."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

import forwardpass
from forwardpass.errors import GoldenMismatch, InvalidOption, MalformedRequest, TensorMismatch
from tests.models import mlp_calls, write_bundle, write_mlp


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("predictor")


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Path:
    return write_bundle(folder / "bundle", write_mlp(folder / "mlp.onnx"), mlp_calls())


def test_an_answer_is_that_of_the_bare_runtime(bundle: Path, folder: Path) -> None:
    pixels = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
    expected = ort.InferenceSession(str(folder / "mlp.onnx")).run(None, {"pixels": pixels})[0]
    model = forwardpass.load(bundle)
    np.testing.assert_array_equal(model.predict({"pixels": pixels})["scores"], expected)
    np.testing.assert_array_equal(model.predict(pixels.astype(np.float64))["scores"], expected)


def test_an_input_that_does_not_fit_is_named(bundle: Path) -> None:
    model = forwardpass.load(bundle)
    with pytest.raises(TensorMismatch, match=r"Input 'pixels' has shape \[1, 63\]; expected float32\[batch, 64\]"):
        model.predict(np.zeros((1, 63), np.float32))
    with pytest.raises(TensorMismatch, match="Input 'x' is not an input of this model"):
        model.predict({"x": np.zeros((1, 64), np.float32)})


def test_its_line_says_what_it_takes_and_gives(bundle: Path) -> None:
    line = "<Predictor mlp, onnx-fp32: pixels float32[batch, 64] → scores float32[batch, 10]>"
    assert repr(forwardpass.load(bundle)) == line


def test_a_person_cannot_ask_a_bundle_without_a_processor(bundle: Path) -> None:
    with pytest.raises(MalformedRequest, match="has no processor"):
        forwardpass.load(bundle).ask(text="hello")


def test_an_unknown_variant_names_those_there_are(bundle: Path) -> None:
    with pytest.raises(InvalidOption, match="expected one of onnx-fp32"):
        forwardpass.load(bundle, variant="int8")


def test_a_model_that_answers_differently_from_its_golden_answers_does_not_open(folder: Path) -> None:
    bundle = write_bundle(folder / "shifted", write_mlp(folder / "shifted.onnx"), mlp_calls())
    golden = bundle / "golden/onnx-fp32.npz"
    with np.load(golden) as archive:
        shifted = {name: archive[name] * 1.01 for name in archive.files}
    np.savez(golden, allow_pickle=False, **shifted)
    manifest = json.loads((bundle / "manifest.json").read_text())
    content = golden.read_bytes()
    record = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    manifest["files"]["golden/onnx-fp32.npz"] = record
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(GoldenMismatch, match=r"output 'scores' is off by 0\.0099 \(tolerance 0\.0001, both relative\)"):
        forwardpass.load(bundle)
