"""Signatures: what fits and what is said when something does not."""

from __future__ import annotations

import numpy as np
import pytest

from forwardpass.core.tensors import Signature, TensorSpec
from forwardpass.errors import TensorMismatch

TOKENS = Signature(
    inputs=(
        TensorSpec(name="ids", dtype="int64", shape=("batch", "sequence")),
        TensorSpec(name="mask", dtype="int64", shape=("batch", "sequence")),
    ),
    outputs=(TensorSpec(name="vector", dtype="float32", shape=("batch", 4)),),
)


def ids(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.ones(shape, dtype=np.int64)


def test_the_number_of_rows_is_the_size_of_the_batch_axis() -> None:
    assert TOKENS.validate({"ids": ids(3, 7), "mask": ids(3, 7)}) == 3


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({"ids": ids(1, 2)}, "Input 'mask' is missing; expected int64[batch, sequence]."),
        (
            {"ids": ids(1, 2), "mask": ids(1, 2), "x": ids(1)},
            "Input 'x' is not an input of this model; expected the inputs ids, mask.",
        ),
        (
            {"ids": ids(1, 2).astype(np.int32), "mask": ids(1, 2)},
            "Input 'ids' has dtype int32; expected int64[batch, sequence].",
        ),
        ({"ids": ids(2), "mask": ids(1, 2)}, "Input 'ids' has shape [2]; expected int64[batch, sequence]."),
        (
            {"ids": ids(1, 2), "mask": ids(1, 3)},
            "Input 'mask' has 3 along axis 1 (sequence); expected 2, as in the inputs before it.",
        ),
        (
            {"ids": ids(0, 2), "mask": ids(0, 2)},
            "Input 'ids' is empty along axis 0 (batch); expected at least one element.",
        ),
    ],
)
def test_a_misfit_is_named_with_what_was_expected(
    tensors: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.int64]]], sentence: str
) -> None:
    with pytest.raises(TensorMismatch) as caught:
        TOKENS.validate(tensors)
    assert str(caught.value) == sentence


def test_a_model_whose_first_axis_is_fixed_cannot_be_batched() -> None:
    fixed = TensorSpec(name="x", dtype="float32", shape=(1, 4))
    signature = Signature(inputs=(fixed,), outputs=(fixed,))
    assert not signature.is_batchable
    assert signature.validate({"x": np.zeros((1, 4), np.float32)}) == 1


def test_requests_can_be_stacked_when_the_sizes_behind_the_batch_agree() -> None:
    short, long = {"ids": ids(1, 2), "mask": ids(1, 2)}, {"ids": ids(4, 9), "mask": ids(4, 9)}
    assert TOKENS.shape_key(short) == TOKENS.shape_key({"ids": ids(3, 2), "mask": ids(3, 2)})
    assert TOKENS.shape_key(short) != TOKENS.shape_key(long)


def test_a_tensor_of_text_is_called_one_of_strings() -> None:
    assert str(TensorSpec(name="word", dtype="object", shape=("batch", 1))) == "string[batch, 1]"
