"""In batches of which sizes a variant answers the same to the last bit, and whether it is worth its price.

The server and a bundle in the user's own process decide here, so that one gives the answers of the other.
"""

from __future__ import annotations

from enum import StrEnum

from forwardpass.bundle import BundledVariant
from forwardpass.core.latency import LatencyTable
from forwardpass.core.variants import BatchInvariance

__all__ = ["SameAnswer", "exact_batch_sizes", "max_batch_rows"]

UNMEASURED_MAX_BATCH_ROWS = 32
"""For a variant whose batches were never measured; what it learns while serving corrects the predictions."""

MAX_PADDING_COST = 1.1
"""How much dearer a lone request may become by padding before the operator is asked."""


class SameAnswer(StrEnum):
    """How equal the answers to a request have to be, whatever shares its batch."""

    AFFORDABLE = "affordable"
    """To the last bit, where the variant can do that at little cost; else up to rounding, and the log says so."""
    BITWISE = "bitwise"
    """To the last bit, where the variant can do that, whatever it costs."""
    ROUNDING = "rounding"
    """Up to rounding: batches of any size, and shapes padded to each other, even where the last bits depend on it."""


def max_batch_rows(variant: BundledVariant, table: LatencyTable | None) -> int:
    """Return how many rows of different requests may share a batch.

    One, for a variant whose rows change each other's answers or that cannot be batched; otherwise the batch size with
    the best throughput, which is one where batching gains nothing.
    """
    if variant.invariance in (BatchInvariance.INTERFERENCE, BatchInvariance.NOT_BATCHABLE):
        return 1
    return table.best_batch_size if table is not None else UNMEASURED_MAX_BATCH_ROWS


def exact_batch_sizes(
    variant: BundledVariant, same_answer: SameAnswer, max_rows: int, table: LatencyTable | None
) -> tuple[int, ...]:
    """Return the only sizes that may run, so that answers are the same to the last bit; empty for any.

    Where batching gains nothing, that is one row at a time and costs nothing. Otherwise rows are padded up to sizes
    that agree, which makes a lone request dearer.
    """
    if not variant.exact_batch_sizes or same_answer is SameAnswer.ROUNDING:
        return ()
    if max_rows == 1:
        return (1,)
    if same_answer is SameAnswer.AFFORDABLE:
        least = variant.exact_batch_sizes[0]
        if table is None or table.predict_median_s(least) > MAX_PADDING_COST * table.predict_median_s(1):
            return ()
    return variant.exact_batch_sizes
