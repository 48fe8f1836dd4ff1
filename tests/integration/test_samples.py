"""Samples from files, folders and functions, and what is said about bad ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from forwardpass.core.tensors import Array
from forwardpass.errors import InvalidReference, InvalidSamples, SourceNotFound
from forwardpass.samples import load_splits

PIXELS = np.arange(200, dtype=np.float32).reshape(50, 4)


def some_samples() -> list[dict[str, Array]]:
    """Return samples of two shapes, as a user's function would."""
    return [{"ids": PIXELS.astype(np.int64)}, {"ids": PIXELS[:, :2].astype(np.int64)}]


def broken_samples() -> object:
    raise RuntimeError("the database is away")


def total(origin: str) -> int:
    splits = load_splits(origin)
    return len(splits.calibration) + len(splits.validation) + len(splits.test)


def test_a_file_is_split_into_three(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", pixels=PIXELS, labels=np.arange(50))
    splits = load_splits(str(tmp_path / "data.npz"))
    assert [len(part) for part in (splits.calibration, splits.validation, splits.test)] == [10, 15, 25]
    assert splits.test.has_labels


def test_a_folder_of_files_may_have_a_shape_each(tmp_path: Path) -> None:
    np.savez(tmp_path / "4.npz", ids=PIXELS)
    np.savez(tmp_path / "2.npz", ids=PIXELS[:, :2])
    np.savez(tmp_path / "more.npz", ids=PIXELS[:, :2] + 1000)
    assert total(str(tmp_path)) == 150
    assert {group.inputs["ids"].shape[1] for group in load_splits(str(tmp_path)).test.groups} == {2, 4}


def test_splits_that_are_given_are_kept(tmp_path: Path) -> None:
    for number, name in enumerate(("calibration", "validation", "test")):
        np.savez(tmp_path / f"{name}.npz", pixels=PIXELS[: 5 + number] + 1000 * number)
    splits = load_splits(str(tmp_path))
    assert [len(part) for part in (splits.calibration, splits.validation, splits.test)] == [5, 6, 7]


def test_a_function_gives_samples_of_several_shapes() -> None:
    assert total("tests.integration.test_samples:some_samples") == 100


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"pixels": PIXELS, "labels": np.arange(49)}, "it has 50 samples but 49 labels"),
        (
            {"pixels": np.where(PIXELS == 9, np.nan, PIXELS)},
            "the array 'pixels' has NaN or infinity, first in sample 2",
        ),
        ({"pixels": PIXELS, "mask": PIXELS[:3]}, "different numbers of samples ('pixels' has 50, 'mask' has 3)"),
        ({"labels": np.arange(3)}, "it has no input array"),
        ({"pixels": PIXELS[:0]}, "it is empty"),
        ({"pixels": np.array([1j, 2j])}, "the array 'pixels' has dtype complex128, not numbers or strings"),
        ({"pixels": PIXELS[:4]}, "4 distinct samples cannot be split"),
    ],
)
def test_bad_arrays_are_described(tmp_path: Path, arrays: dict[str, Array], words: str) -> None:
    np.savez(tmp_path / "data.npz", allow_pickle=False, **arrays)
    with pytest.raises(InvalidSamples) as caught:
        load_splits(str(tmp_path / "data.npz"))
    assert words in str(caught.value)


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", pixels=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InvalidSamples, match="arrays of Python objects are pickles and are not read"):
        load_splits(str(tmp_path / "data.npz"))


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 not really"])
def test_a_file_that_is_no_archive_is_described(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(InvalidSamples, match=r"it is not a readable \.npz file"):
        load_splits(str(tmp_path / "data.npz"))


def test_two_of_three_splits_are_not_enough(tmp_path: Path) -> None:
    np.savez(tmp_path / "test.npz", pixels=PIXELS)
    np.savez(tmp_path / "calibration.npz", pixels=PIXELS)
    with pytest.raises(InvalidSamples, match=r"it has only calibration\.npz, test\.npz"):
        load_splits(str(tmp_path))


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        SourceNotFound, match=r"expected an \.npz file, a folder of them, or 'package\.module:function'"
    ):
        load_splits(str(tmp_path / "nothing.npz"))
    with pytest.raises(InvalidReference, match="there is no module named 'nowhere'"):
        load_splits("nowhere.at_all:samples")
    with pytest.raises(InvalidSamples, match="it raised RuntimeError: the database is away"):
        load_splits("tests.integration.test_samples:broken_samples")
