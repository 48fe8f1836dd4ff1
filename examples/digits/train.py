"""Train the digit classifier in a few seconds: `python -m digits.train FOLDER`.

Writes `weights.safetensors`, and `data.npz` with images that the training has not seen.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

from digits.model import build

SEED = 7
NUM_TRAINING_IMAGES = 1000
NUM_EPOCHS = 20
BATCH_SIZE = 50


def train(folder: Path) -> float:
    """Train on 1000 images, write weights and the other 797 images, and return the accuracy on those."""
    torch.manual_seed(SEED)
    digits = load_digits()
    pixels = (digits.images / 16).astype(np.float32)[:, None]
    order = np.random.default_rng(SEED).permutation(len(pixels))
    seen, unseen = order[:NUM_TRAINING_IMAGES], order[NUM_TRAINING_IMAGES:]
    model = build().train()
    with one_thread():
        _fit(model, torch.from_numpy(pixels[seen]), torch.from_numpy(digits.target[seen]))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "weights.safetensors")
    np.savez(folder / "data.npz", pixels=pixels[unseen], labels=digits.target[unseen])
    with torch.inference_mode():
        decided = model.eval()(torch.from_numpy(pixels[unseen]))["scores"].argmax(dim=1).numpy()
    return float((decided == digits.target[unseen]).mean())


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread: for images of 64 pixels, threads wait for each other longer than they work.

    On two busy cores training took 70 s with two threads and 5 s with one.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _fit(model: torch.nn.Module, pixels: torch.Tensor, labels: torch.Tensor) -> None:
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(NUM_EPOCHS):
        for rows in torch.randperm(len(pixels)).split(BATCH_SIZE):
            optimiser.zero_grad()
            cross_entropy(model(pixels[rows])["scores"], labels[rows]).backward()
            optimiser.step()


if __name__ == "__main__":
    target = Path(sys.argv[1])
    print(f"accuracy on unseen digits: {train(target):.1%}; wrote {target}/weights.safetensors and {target}/data.npz")
