"""PyTorch sources: named by a factory, given weights, and run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model

from forwardpass.errors import InvalidModel, InvalidReference
from forwardpass.runtimes import RuntimeOptions
from forwardpass.runtimes.torch import TorchRuntime, load_module
from tests.integration import conversion_sources as sources

SOURCES = "tests.integration.conversion_sources"


def test_outputs_are_those_of_the_module_by_name() -> None:
    runtime = TorchRuntime.from_reference(f"{SOURCES}:tokens", options=RuntimeOptions())
    ids = np.array([[1, 2, 3]])
    answers = runtime.run({"ids": ids})
    with torch.inference_mode():
        mean, words = sources.tokens()(torch.from_numpy(ids))
    np.testing.assert_array_equal(answers["output_0"], mean.numpy())
    np.testing.assert_array_equal(answers["output_1"], words.numpy())
    assert [spec.name for spec in runtime.signature.inputs] == ["ids"]


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("tokens", "it has another form"),
        ("nowhere.at.all:build", "there is no module named 'nowhere'"),
        (f"{SOURCES}:missing", f"the module '{SOURCES}' has no 'missing'"),
        (f"{SOURCES}:not_callable", "it is not a function or class"),
        (f"{SOURCES}:raises", "calling it raised RuntimeError: no such checkpoint"),
        (f"{SOURCES}:no_module", "it returned int, not a torch.nn.Module"),
    ],
)
def test_a_factory_that_does_not_work_is_described(reference: str, words: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        load_module(reference)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({}, "it lacks table.weight"),
        ({"table.weight": torch.ones(20, 4), "more": torch.ones(1)}, "the module does not have more"),
        ({"table.weight": torch.ones(20, 5)}, "the shape differs for table.weight"),
    ],
)
def test_weights_that_do_not_fit_are_described(state: dict[str, torch.Tensor], words: str, tmp_path: Path) -> None:
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(InvalidModel) as caught:
        load_module(f"{SOURCES}:tokens", weights=str(tmp_path / "w.safetensors"))
    assert words in str(caught.value)


def test_a_file_that_is_no_safetensors_is_described(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(InvalidModel, match="it is not a readable safetensors file"):
        load_module(f"{SOURCES}:tokens", weights=str(tmp_path / "w.safetensors"))


def test_weights_shared_under_two_names_are_saved_once_and_load(tmp_path: Path) -> None:
    module = sources.TwoInputs()
    save_model(module, str(tmp_path / "w.safetensors"))
    loaded = load_module(f"{SOURCES}:two_inputs", weights=str(tmp_path / "w.safetensors"))
    torch.testing.assert_close(loaded.state_dict()["again.weight"], module.layer.weight.detach())


@pytest.mark.slow
def test_the_example_encoder_is_that_of_sentence_transformers() -> None:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

    from sentences.model import MODEL_FOLDER

    texts = ["The cat sleeps.", "Interest rates rose by a quarter of a point.", "Hello!"]
    expected = SentenceTransformer(str(MODEL_FOLDER), device="cpu").encode(texts, normalize_embeddings=True)
    tokenizer = Tokenizer.from_file(str(MODEL_FOLDER / "tokenizer.json"))
    tokenizer.no_padding()
    runtime = TorchRuntime.from_reference("sentences.model:build", options=RuntimeOptions())
    for text, row in zip(texts, expected, strict=True):
        ids = np.array([tokenizer.encode(text).ids])
        answer = runtime.run({"input_ids": ids, "attention_mask": np.ones_like(ids)})["sentence_embedding"][0]
        np.testing.assert_allclose(answer, row, atol=1e-5)


@pytest.mark.parametrize("place", ["", "    "], ids=["with the module", "in the factory"])
def test_what_torchao_says_of_other_machines_while_a_module_is_loaded_is_not_passed_on(
    place: str, tmp_path: Path
) -> None:
    """Loaded in a process of its own, since a module is imported once; what the module itself logs is passed on."""
    pytest.importorskip("torchao")
    lines = [f"{place}import torchao", f"{place}logging.getLogger('shop').warning('mine')"]
    top, inside = (lines, []) if not place else ([], lines)
    code = ["import logging", "import torch", *top, "def build():", *inside, "    return torch.nn.Linear(1, 1)"]
    (tmp_path / "shop.py").write_text("\n".join(code))
    program = "from forwardpass.runtimes.torch import load_module; load_module('shop:build')"
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=100
    )
    assert finished.stderr == "mine\n"
