"""Checkpoints are told apart by their content: every safetensors file is one, and no pickle is."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from forwardpass.runtimes.weights import is_pickle

LIKE_A_PICKLE = (640, 896, 1152, 1408)
"""As little-endian numbers these begin with the two bytes of pickle protocols 2 to 5."""


def write_safetensors(path: Path, header_bytes: int) -> None:
    """Write one tensor behind a header of this length, padded with spaces as the format has it."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}})
    body = np.arange(3, dtype=np.float32).tobytes()
    path.write_bytes(header_bytes.to_bytes(8, "little") + header.encode().ljust(header_bytes) + body)


@given(st.integers(8, 9000).map(lambda words: 8 * words))
@example(LIKE_A_PICKLE[0])
@example(LIKE_A_PICKLE[1])
@example(LIKE_A_PICKLE[2])
@example(LIKE_A_PICKLE[3])
def test_a_safetensors_file_is_no_pickle_however_long_its_header(
    tmp_path_factory: pytest.TempPathFactory, header_bytes: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "w.safetensors"
    write_safetensors(path, header_bytes)
    assert load_file(path)["w"].tolist() == [0, 1, 2]  # the foreign oracle: it is a valid file
    assert not is_pickle(path)


@given(st.integers(0, pickle.HIGHEST_PROTOCOL), st.dictionaries(st.text(), st.lists(st.floats()), max_size=20))
def test_a_pickle_is_one_whatever_is_in_it(
    tmp_path_factory: pytest.TempPathFactory, protocol: int, state: dict[str, list[float]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "w.safetensors"
    path.write_bytes(pickle.dumps(state, protocol=protocol))
    assert is_pickle(path)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_checkpoint_of_torch_is_a_pickle(tmp_path: Path, is_zip: bool) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "w.pt", _use_new_zipfile_serialization=is_zip)
    assert is_pickle(tmp_path / "w.pt")
