"""Weights in 4 or 8 bits, with a scale and a zero point for every block of a column: the numbers alone, no graph.

Of every block several ranges are tried, the whole one and narrower ones; to the integers of each, the scale is fitted
by least squares, and what is nearest to the weights is kept. Where 4 bits have 15 steps for a block, cutting off its
largest value can cost less than a coarser step for all the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from forwardpass.core.tensors import Array

__all__ = ["Blocks", "block_bytes", "quantise_blocks", "restore_blocks"]

SHRINK_FACTORS = {4: (1.0, 0.95, 0.9, 0.85, 0.8, 0.7), 8: (1.0,)}
"""By bits. With 255 steps, rounding costs too little for cutting off to pay."""
CHUNK_VALUES = 2**20
"""As many weights at once keep the intermediate arrays in the caches and small beside the model."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Blocks:
    """A matrix in blocks: uint8 `packed` (columns, blocks, bytes), float32 `scales` (columns, blocks) and uint8
    `zero_points` (columns, bytes), the low half of a byte first, as ONNX Runtime's MatMulNBits reads them.
    """

    bits: int
    block_size: int
    num_rows: int
    packed: Array
    scales: Array
    zero_points: Array


def quantise_blocks(weights: Array, *, bits: int, block_size: int, is_quick: bool = False) -> Blocks:
    """Round a matrix (rows, columns), of which every column is cut into blocks; a last short block is filled with 0.

    With `is_quick` only the whole range of every block is tried: for measuring time, which values do not change.
    """
    num_rows, num_columns = weights.shape
    num_blocks = -(-num_rows // block_size)
    factors = SHRINK_FACTORS[bits][:1] if is_quick else SHRINK_FACTORS[bits]
    packed = np.empty((num_columns, num_blocks, block_size * bits // 8), np.uint8)
    scales = np.empty((num_columns, num_blocks), np.float32)
    zero_points = np.empty((num_columns, -(-num_blocks * bits // 8)), np.uint8)
    for columns in _chunks(num_columns, max(1, CHUNK_VALUES // max(num_rows, 1))):
        padded = np.zeros((columns.stop - columns.start, num_blocks * block_size), np.float32)
        padded[:, :num_rows] = weights[:, columns].T
        steps, zeros, scales[columns] = _nearest(padded.reshape(-1, num_blocks, block_size), 2**bits - 1, factors)
        packed[columns] = _pack(steps, bits)
        zero_points[columns] = _pack(zeros, bits)
    return Blocks(
        bits=bits, block_size=block_size, num_rows=num_rows, packed=packed, scales=scales, zero_points=zero_points
    )


def restore_blocks(blocks: Blocks) -> Array:
    """Return the matrix (rows, columns) that the blocks stand for."""
    steps = _unpack(blocks.packed, blocks.bits).astype(np.float32)
    zeros = _unpack(blocks.zero_points, blocks.bits)[:, : blocks.scales.shape[1]].astype(np.float32)
    values = (steps - zeros[..., None]) * blocks.scales[..., None]
    return np.ascontiguousarray(values.reshape(len(values), -1)[:, : blocks.num_rows].T)


def block_bytes(num_rows: int, num_columns: int, *, bits: int, block_size: int) -> int:
    """Return the bytes that a matrix takes in blocks.

    >>> block_bytes(64, 10, bits=4, block_size=32)  # 10 columns of 2 blocks: 16 bytes and a scale each, 1 of zeros
    410
    """
    num_blocks = -(-num_rows // block_size)
    return num_columns * (num_blocks * (block_size * bits // 8 + 4) + -(-num_blocks * bits // 8))


def _chunks(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def _nearest(values: Array, num_steps: int, factors: tuple[float, ...]) -> tuple[Array, Array, Array]:
    """Return steps, zero points and scales of blocks (columns, blocks, size), each with the best of the factors."""
    low, high = np.minimum(values.min(axis=-1), 0), np.maximum(values.max(axis=-1), 0)
    best = _rounded(values, low, high, num_steps)
    for factor in factors[1:]:
        other = _rounded(values, low * np.float32(factor), high * np.float32(factor), num_steps)
        better = other.error < best.error
        best = _Rounded(
            steps=np.where(better[..., None], other.steps, best.steps),
            zeros=np.where(better, other.zeros, best.zeros),
            scales=np.where(better, other.scales, best.scales),
            error=np.where(better, other.error, best.error),
        )
    return best.steps, best.zeros, best.scales


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Rounded:
    steps: Array
    zeros: Array
    scales: Array
    error: Array


def _rounded(values: Array, low: Array, high: Array, num_steps: int) -> _Rounded:
    scale = (high - low) / np.float32(num_steps)
    scale = np.where(scale > 0, scale, np.float32(1.0)).astype(np.float32)
    zeros = np.clip(np.rint(-low / scale), 0, num_steps).astype(np.float32)
    steps = np.clip(np.rint(values / scale[..., None]) + zeros[..., None], 0, num_steps)
    levels = steps - zeros[..., None]
    # The sum of squares with scale s is s²·dd - 2s·dw + ww, which is least, ww - dw²/dd, at s = dw/dd.
    dd = np.einsum("nbk,nbk->nb", levels, levels)
    dw = np.einsum("nbk,nbk->nb", levels, values)
    is_fitted = (dd > 0) & (dw > 0)
    safe = np.where(is_fitted, dd, np.float32(1.0))
    return _Rounded(
        steps=steps.astype(np.uint8),
        zeros=zeros.astype(np.uint8),
        scales=np.where(is_fitted, dw / safe, scale).astype(np.float32),
        error=np.where(is_fitted, -dw * dw / safe, np.float32(0.0)),
    )


def _pack(steps: Array, bits: int) -> Array:
    """Put two 4-bit numbers of the last axis into a byte, the first in its low half; a missing last one is 0."""
    if bits == 8:
        return steps
    if steps.shape[-1] % 2:
        steps = np.concatenate([steps, np.zeros((*steps.shape[:-1], 1), np.uint8)], axis=-1)
    packed: Array = steps[..., 0::2] | steps[..., 1::2] << 4
    return packed


def _unpack(packed: Array, bits: int) -> Array:
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
