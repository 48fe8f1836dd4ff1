"""The examples train and prepare what the demo ships, without getting in the machine's way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from digits import train


def test_the_digits_train_on_one_thread_and_give_the_others_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(train, "_fit", lambda *_: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        train.train(tmp_path)
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)
    assert {path.name for path in tmp_path.iterdir()} == {"weights.safetensors", "data.npz"}
