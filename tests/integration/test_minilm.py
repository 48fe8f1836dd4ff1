"""Quantisation of a real encoder, with the encoder of other people (sentence-transformers) as the oracle."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from forwardpass.core.samples import Samples
from forwardpass.core.tensors import Array
from forwardpass.core.variants import Format, Precision, Variant
from forwardpass.optimize.candidates import Workshop, blueprints, build, folded
from forwardpass.optimize.gains import measure_gains
from forwardpass.optimize.mixing import MixedWork, build_mixed
from forwardpass.optimize.results import ResultStore
from forwardpass.optimize.terms import Terms
from forwardpass.runtimes import RuntimeOptions, open_runtime

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
NUM_TEXTS = 40


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """The converted encoder, texts that its calibration has not seen, and what sentence-transformers makes of them."""

    location: Path
    calibration: Samples
    tokens: list[Array]
    expected: Array

    def cosine(self, location: str | Path) -> float:
        """Return how near the embeddings of a file are to the oracle's, on average."""
        runtime = open_runtime(Format.ONNX, str(location), options=RuntimeOptions())
        calls = [{"input_ids": ids, "attention_mask": np.ones_like(ids)} for ids in self.tokens]
        rows = np.stack([runtime.run(call)["sentence_embedding"][0] for call in calls])
        return float((rows * self.expected).sum(axis=1).mean())

    def workshop(self, folder: Path) -> Workshop:
        """Return what variants are made with."""
        baseline = Variant(name="onnx-fp32", format=Format.ONNX, precision=Precision.FP32, location=str(self.location))
        return Workshop(baseline=baseline, calibration=self.calibration, folder=folder, reduce_range=False)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """Convert the example encoder, and ask the oracle."""
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

    from forwardpass.convert import TorchSource, convert_to_onnx
    from forwardpass.samples import load_splits
    from sentences.model import MODEL_FOLDER
    from sentences.prepare import prepare, real_sentences

    folder = tmp_path_factory.mktemp("minilm")
    prepare(folder)
    calibration = load_splits(str(folder / "data")).calibration
    convert_to_onnx(
        TorchSource(reference="sentences.model:build"),
        calibration,
        out=folder / "float.onnx",
        progress=lambda text, done: None,
    )
    texts = [text.replace("the ", "a ") for text in real_sentences()[:NUM_TEXTS]]
    tokenizer = Tokenizer.from_file(str(MODEL_FOLDER / "tokenizer.json"))
    tokenizer.no_padding()
    return Encoder(
        location=folder / "float.onnx",
        calibration=calibration,
        tokens=[np.array([tokenizer.encode(text).ids]) for text in texts],
        expected=SentenceTransformer(str(MODEL_FOLDER), device="cpu").encode(texts, normalize_embeddings=True),
    )


def test_smoothing_takes_away_more_than_half_of_what_eight_bits_cost(encoder: Encoder, tmp_path: Path) -> None:
    workshop = encoder.workshop(tmp_path)
    lost = {
        blueprint.name: 1 - encoder.cosine(build(blueprint, workshop).location)
        for blueprint in blueprints()
        if blueprint.name in ("int8-dynamic", "int8-static", "int8-dynamic-smooth", "int8-static-smooth")
    }
    assert encoder.cosine(encoder.location) > 1 - 1e-5
    assert encoder.cosine(tmp_path / "smoothed.onnx") > 1 - 1e-5
    assert lost["int8-dynamic-smooth"] < lost["int8-dynamic"] / 2
    assert lost["int8-static-smooth"] < lost["int8-static"] / 2


def test_a_floor_that_eight_bits_miss_holds_with_a_few_nodes_in_float(
    encoder: Encoder, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    workshop = encoder.workshop(tmp_path)
    request.addfinalizer(workshop.tidy)
    static = next(blueprint for blueprint in blueprints() if blueprint.name == "int8-static-smooth")
    assert encoder.cosine(build(static, workshop).location) < 0.999
    store = ResultStore(tmp_path / "search")
    gains = measure_gains(folded(workshop), encoder.calibration, store=store, reduce_range=False)
    terms = Terms(
        workshop=replace(workshop, gains=gains),
        store=store,
        key="minilm",
        score=lambda variant: encoder.cosine(variant.location),
        holds=lambda score: score >= 0.999,
        is_for_speed=True,
    )
    work = MixedWork(terms=terms, static_holds=False)
    mixed = build_mixed(work)
    assert mixed is not None
    assert encoder.cosine(mixed.location) >= 0.999
    kept = str(dict(mixed.recipe.steps[-1].parameters)["kept_in_float"]).split(", ")
    assert 1 <= len(kept) <= 12
