"""Matrices in blocks: no worse than plain rounding, packed as they are read, as small as is said."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from forwardpass.core.tensors import Array
from forwardpass.optimize.blocks import block_bytes, quantise_blocks, restore_blocks

SIZES = st.tuples(st.integers(1, 70), st.integers(1, 5))
MATRICES = SIZES.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=st.floats(-8, 8, width=16)))
BITS = st.sampled_from([4, 8])
BLOCK_SIZES = st.sampled_from([16, 32, 64])


def rounded_plainly(weights: Array, bits: int, block_size: int) -> Array:
    """Round block by block and column by column, over the whole range of the block, in float64."""
    result = np.zeros(weights.shape)
    for column in range(weights.shape[1]):
        for start in range(0, len(weights), block_size):
            block = weights[start : start + block_size, column].astype(np.float64)
            low, high = min(block.min(), 0.0), max(block.max(), 0.0)
            scale = (high - low) / (2**bits - 1) or 1.0
            zero = np.round(-low / scale)
            steps = np.clip(np.round(block / scale) + zero, 0, 2**bits - 1)
            result[start : start + block_size, column] = (steps - zero) * scale
    return result


@given(MATRICES, BITS, BLOCK_SIZES)
def test_no_block_is_farther_from_its_weights_than_plain_rounding(weights: Array, bits: int, block_size: int) -> None:
    found = restore_blocks(quantise_blocks(weights, bits=bits, block_size=block_size))
    assert found.shape == weights.shape
    plain = rounded_plainly(weights, bits, block_size)
    tolerance = 1e-4 * float(np.square(weights.astype(np.float64)).sum()) + 1e-12  # a tie rounds elsewhere in float32
    assert np.square(found - weights.astype(np.float64)).sum() <= np.square(plain - weights).sum() + tolerance


@given(MATRICES, BITS, BLOCK_SIZES)
def test_blocks_take_the_bytes_that_are_said(weights: Array, bits: int, block_size: int) -> None:
    blocks = quantise_blocks(weights, bits=bits, block_size=block_size)
    found = blocks.packed.nbytes + blocks.scales.nbytes + blocks.zero_points.nbytes
    assert found == block_bytes(*weights.shape, bits=bits, block_size=block_size)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_matrix_of_whole_steps_comes_back_as_it_was(bits: int) -> None:
    steps = np.random.default_rng(3).integers(0, 2**bits, (64, 3))
    steps[0], steps[1] = 0, 2**bits - 1
    steps[32], steps[33] = 0, 2**bits - 1
    weights = ((steps - 5) * 0.25).astype(np.float32)
    np.testing.assert_allclose(restore_blocks(quantise_blocks(weights, bits=bits, block_size=32)), weights, atol=1e-5)


def test_narrower_ranges_and_fitted_scales_are_nearer_than_the_whole_range() -> None:
    weights = np.random.default_rng(3).standard_normal((512, 64)).astype(np.float32)

    def error(*, is_quick: bool) -> float:
        found = restore_blocks(quantise_blocks(weights, bits=4, block_size=128, is_quick=is_quick))
        return float(np.linalg.norm(found - weights) / np.linalg.norm(weights))

    assert error(is_quick=False) < 0.97 * error(is_quick=True)


def test_zeros_stay_zeros() -> None:
    assert not restore_blocks(quantise_blocks(np.zeros((40, 2), np.float32), bits=4, block_size=32)).any()
