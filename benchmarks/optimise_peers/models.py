"""The models: trained or pretrained, as ONNX files, with samples in the three splits that everybody gets.

The rivals see calibration and validation; the test split is for the table alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from benchmarks.optimise_peers.networks import SIDE, build_mobilenet, build_resnet
from digits.train import one_thread
from digits.train import train as train_digits
from forwardpass import convert_model
from forwardpass.core.samples import Samples, SampleSplits
from forwardpass.samples import load_splits
from sentences.prepare import prepare as prepare_sentences

__all__ = ["MODELS", "Model", "Prepared", "prepare"]

SEED = 7
NUM_LESSONS = 1000
NUM_EPOCHS = 4
BATCH_SIZE = 25
LEARNING_RATE = 3e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model: a factory, how its weights and its samples are made, and what right means for it."""

    name: str
    what: str
    factory: str
    metric: str
    make: Callable[[Path], Path]
    """Writes weights and samples into a folder; returns the path of the samples."""
    has_weights: bool = True
    is_transformer: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A model on disk."""

    model: Model
    onnx: Path
    weights: str
    data: Path
    """A folder with the splits, each a folder of .npz files."""
    splits: SampleSplits


def prepare(model: Model, cache: Path) -> Prepared:
    """Train and convert a model and split its samples, or find all that in the cache folder."""
    folder = cache / "models" / model.name
    stamp, onnx, data = folder / "ready.json", folder / "model.onnx", folder / "splits"
    recipe = {"seed": SEED, "epochs": NUM_EPOCHS, "side": SIDE, "torch": torch.__version__}
    weights = str(folder / "weights.safetensors") if model.has_weights else ""
    if not stamp.exists() or json.loads(stamp.read_text()) != recipe:
        folder.mkdir(parents=True, exist_ok=True)
        samples = model.make(folder)
        _write_splits(load_splits(str(samples)), data)
        convert_model(model.factory, weights=weights, data=str(samples), out=onnx)
        stamp.write_text(json.dumps(recipe))
    return Prepared(model=model, onnx=onnx, weights=weights, data=data, splits=load_splits(str(data)))


def _write_splits(splits: SampleSplits, folder: Path) -> None:
    for name in ("calibration", "validation", "test"):
        samples: Samples = getattr(splits, name)
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number, group in enumerate(samples.groups):
            labels = {} if group.labels is None else {"labels": group.labels}
            np.savez(folder / name / f"{number:03}.npz", allow_pickle=False, **group.inputs, **labels)


def _make_digits(folder: Path) -> Path:
    train_digits(folder)
    return folder / "data.npz"


def _make_sentences(folder: Path) -> Path:
    prepare_sentences(folder)
    return folder / "data"


def _make_network(build: Callable[[], nn.Module], folder: Path) -> Path:
    """Teach a network the digits, enlarged; images that it has not seen become the samples."""
    torch.manual_seed(SEED)
    digits = load_digits()
    small = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
    pixels = functional.interpolate(small, size=(SIDE, SIDE), mode="bilinear")
    labels = torch.from_numpy(digits.target)
    order = torch.from_numpy(np.random.default_rng(SEED).permutation(len(pixels)))
    seen, unseen = order[:NUM_LESSONS], order[NUM_LESSONS:]
    network = build().train()
    with one_thread():
        _fit(network, pixels[seen], labels[seen])
    save_file(network.state_dict(), folder / "weights.safetensors")
    np.savez(folder / "data.npz", pixels=pixels[unseen].numpy(), labels=digits.target[unseen.numpy()])
    return folder / "data.npz"


def _fit(network: nn.Module, pixels: torch.Tensor, labels: torch.Tensor) -> None:
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
    num_steps = NUM_EPOCHS * -(-len(pixels) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=num_steps)
    for _ in range(NUM_EPOCHS):
        for rows in torch.randperm(len(pixels)).split(BATCH_SIZE):
            optimiser.zero_grad()
            functional.cross_entropy(network(pixels[rows])["scores"], labels[rows]).backward()
            optimiser.step()
            schedule.step()


_NETWORKS = "benchmarks.optimise_peers.networks"
MODELS = {
    model.name: model
    for model in (
        Model(
            name="digits",
            what="the small CNN of examples/digits, 8x8 pixels",
            factory="digits.model:build",
            metric="accuracy",
            make=_make_digits,
        ),
        Model(
            name="minilm",
            what="all-MiniLM-L6-v2, sentences of 8 to 60 tokens",
            factory="sentences.model:build",
            metric="cosine",
            make=_make_sentences,
            has_weights=False,
            is_transformer=True,
        ),
        Model(
            name="resnet",
            what="a residual CNN of 14 convolutions, 64x64 pixels",
            factory=f"{_NETWORKS}:build_resnet",
            metric="accuracy",
            make=lambda folder: _make_network(build_resnet, folder),
        ),
        Model(
            name="mobilenet",
            what="a CNN of depthwise and pointwise convolutions, 64x64 pixels",
            factory=f"{_NETWORKS}:build_mobilenet",
            metric="accuracy",
            make=lambda folder: _make_network(build_mobilenet, folder),
        ),
    )
}
