"""Batches of certain sizes only: how many rows may go into one, how many it is run with, and what fills it up."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from forwardpass.core.tensors import Array

__all__ = ["allowed_rows", "copies_of_last_row", "padded_rows"]


def allowed_rows(num_rows: int, batch_sizes: Sequence[int]) -> int:
    """Return the largest allowed size up to `num_rows`, or the smallest there is; any is allowed if none is named.

    >>> allowed_rows(6, (2, 4, 8)), allowed_rows(1, (2, 4, 8)), allowed_rows(6, ())
    (4, 2, 6)
    """
    return max((size for size in batch_sizes if size <= num_rows), default=min(batch_sizes, default=num_rows))


def padded_rows(num_rows: int, batch_sizes: Sequence[int]) -> int:
    """Return with how many rows so many are run: the next allowed size, or as they are beyond the largest.

    The sizes ascend.

    >>> padded_rows(3, (2, 4, 8)), padded_rows(9, (2, 4, 8)), padded_rows(3, ())
    (4, 9, 3)
    """
    at = bisect_left(batch_sizes, num_rows)
    return batch_sizes[at] if at < len(batch_sizes) else num_rows


def copies_of_last_row(rows: Array, num_copies: int) -> Array:
    """Return what fills a batch up: a valid input whatever the model does. It takes no memory."""
    last = rows[-1:]
    return np.broadcast_to(last, (num_copies, *last.shape[1:]))
