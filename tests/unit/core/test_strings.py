"""Strings keep every byte wherever they are written, and are compared by what they hold."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwardpass.core.archives import read_calls, write_calls
from forwardpass.core.samples import SampleGroup, Samples, fingerprint_samples
from forwardpass.core.strings import array_bytes, decode_strings, encode_strings, strings_array
from forwardpass.core.tensors import Array
from forwardpass.predict import relative_error
from forwardpass.serve.channel import Arena

ROWS = st.lists(st.binary(max_size=40) | st.binary(min_size=1000, max_size=1500), min_size=1, max_size=8)


@contextmanager
def arena() -> Iterator[Arena]:
    made = Arena.create()
    try:
        yield made
    finally:
        made.close()


def column(rows: list[bytes]) -> Array:
    return strings_array(rows, (len(rows), 1))


@given(parts=st.lists(ROWS, min_size=1, max_size=4), numbers=st.lists(st.floats(width=32, allow_nan=False), min_size=1))
def test_any_bytes_come_back_through_the_arena_beside_numbers(parts: list[list[bytes]], numbers: list[float]) -> None:
    """NUL, nothing, invalid UTF-8: parts of different lengths are stacked, and nothing is cut or moved."""
    floats = np.array(numbers, np.float32)
    with arena() as shared:
        texts, beside = shared.place([("text", [column(part) for part in parts]), ("x", [floats])])
        found = shared.view(texts)
        assert found.shape == (sum(map(len, parts)), 1)
        assert found.ravel().tolist() == [text for part in parts for text in part]
        assert np.array_equal(shared.view(beside), floats)


def test_the_arena_grows_by_what_strings_hold_and_not_by_pointers() -> None:
    long = b"\xff" * (3 << 20)
    with arena() as shared:
        (placed,) = shared.place([("text", [strings_array([long, b""], (2,))])])
        assert shared.num_bytes >= len(long)
        assert shared.view(placed).tolist() == [long, b""]


@given(rows=ROWS, is_compressed=st.booleans())
def test_any_bytes_come_back_from_an_archive(rows: list[bytes], is_compressed: bool) -> None:
    file = io.BytesIO()
    write_calls(
        file, [{"a:b": column(rows)}, {"a:b": np.ones((2, 1)), "s": column(rows)[:0]}], is_compressed=is_compressed
    )
    file.seek(0)
    first, second = read_calls(file)
    assert first["a:b"].tolist() == column(rows).tolist()
    assert second["a:b"].tolist() == [[1.0], [1.0]]
    assert second["s"].shape == (0, 1)
    file.seek(0)
    (only,) = read_calls(file, only=0)
    assert only.keys() == {"a:b"}


@given(data=st.binary(max_size=30), num_strings=st.integers(0, 5))
def test_what_is_no_strings_is_refused_and_all_else_is_written_again_the_same(data: bytes, num_strings: int) -> None:
    try:
        decoded = decode_strings(data, (num_strings,))
    except ValueError:
        return
    assert encode_strings(decoded) == data


@given(left=ROWS, right=ROWS)
def test_strings_are_equal_if_and_only_if_their_contents_are(left: list[bytes], right: list[bytes]) -> None:
    """Copies of equal strings lie elsewhere in memory."""
    copies = column([bytes(bytearray(row)) for row in left])
    assert array_bytes(column(left)) == array_bytes(copies)
    assert relative_error(column(left), copies) == 0.0
    prints = [
        fingerprint_samples(Samples(groups=(SampleGroup(inputs={"t": strings_array(rows, (len(rows),))}),)))
        for rows in (left, right)
    ]
    assert (prints[0] == prints[1]) == (left == right)
    if len(left) == len(right):
        assert (relative_error(column(left), column(right)) == 0.0) == (left == right)


@pytest.mark.parametrize("names", [["0.strings:t"], ["0.other:t"]])
def test_an_archive_that_does_not_belong_together_is_refused(names: list[str]) -> None:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **{name: np.zeros(4, np.uint8) for name in names})
    file.seek(0)
    with pytest.raises(ValueError, match=r"no shape|unknown kind"):
        read_calls(file)
