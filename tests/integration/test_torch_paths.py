"""Sources that are paths: folders of transformers, and PyTorch's own program files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import transformers

import forwardpass
from forwardpass.errors import InvalidModel, InvalidOption, SourceNotFound, UntrustedPickle


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two tiny layers, saved as transformers saves it."""
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bert")
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def texts(tmp_path: Path) -> str:
    """Samples of two lengths."""
    generator = np.random.default_rng(0)
    (tmp_path / "texts").mkdir()
    for length in (4, 9):
        ids = generator.integers(0, 40, (30, length))
        np.savez(tmp_path / "texts" / f"{length}.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    return str(tmp_path / "texts")


def test_a_folder_of_transformers_becomes_onnx_that_answers_the_same(bert: Path, texts: str, tmp_path: Path) -> None:
    conversion = forwardpass.convert_model(bert, out=tmp_path / "bert.onnx", data=texts)
    assert [spec.shape for spec in conversion.signature.inputs] == [("batch", "sequence")] * 2
    ids = np.random.default_rng(1).integers(0, 40, (3, 6))
    mask = np.ones_like(ids)
    session = onnxruntime.InferenceSession(str(tmp_path / "bert.onnx"), providers=["CPUExecutionProvider"])
    answer = session.run(["last_hidden_state"], {"input_ids": ids, "attention_mask": mask})[0]
    model = transformers.BertModel.from_pretrained(bert)  # in evaluation mode
    with torch.inference_mode():
        expected = model(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).last_hidden_state
    np.testing.assert_allclose(answer, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_code_in_the_folder_and_pickled_weights_are_refused(bert: Path, texts: str, tmp_path: Path) -> None:
    config = json.loads((bert / "config.json").read_text())
    own = tmp_path / "own"
    own.mkdir()
    (own / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "modeling.Mine"}}))
    with pytest.raises(InvalidModel, match="code of its own"):
        forwardpass.convert_model(own, out=tmp_path / "m.onnx", data=texts)
    (own / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidModel, match=r"no \.safetensors file"):
        forwardpass.convert_model(own, out=tmp_path / "m.onnx", data=texts)
    (own / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    with pytest.raises(UntrustedPickle):
        forwardpass.convert_model(own, out=tmp_path / "m.onnx", data=texts)
    with pytest.raises(InvalidOption, match="has its own"):
        forwardpass.convert_model(bert, out=tmp_path / "m.onnx", data=texts, weights=str(bert / "model.safetensors"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceNotFound, match=r"a folder with config\.json"):
        forwardpass.convert_model(tmp_path / "empty", out=tmp_path / "m.onnx", data=texts)


@pytest.mark.parametrize(("form", "suffix"), [("pt2", ".pt2"), ("torchscript", ".pt")])
def test_program_files_of_torch_become_onnx(form: str, suffix: str, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((30, 64)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", pixels=rows)
    data = str(tmp_path / "samples.npz")
    program = tmp_path / f"model{suffix}"
    forwardpass.convert_model("tests.integration.torch_modules:build", out=program, to=form, data=data)
    conversion = forwardpass.convert_model(program, out=tmp_path / "model.onnx", data=data)
    assert conversion.signature.inputs[0].shape == ("batch", 64)
    from tests.integration.torch_modules import build

    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = build().eval()(torch.from_numpy(rows[:7])).numpy()
    np.testing.assert_allclose(session.run(None, {"pixels": rows[:7]})[0], expected, rtol=1e-5, atol=1e-5)
