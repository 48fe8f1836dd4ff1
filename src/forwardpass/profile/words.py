"""The findings on the same answer in words, for tables and pages."""

from __future__ import annotations

from forwardpass.core.variants import BatchInvariance
from forwardpass.profile.audits import InvarianceVerdict
from forwardpass.profile.gaps import join_sizes

__all__ = ["describe_batches", "describe_comparisons", "describe_padding", "describe_processes", "describe_threads"]


def describe_batches(found: InvarianceVerdict) -> str:
    """Say what the verdict means for batches.

    >>> describe_batches(InvarianceVerdict(
    ...     verdict=BatchInvariance.FIXED_SHAPES, max_difference=1e-7, worst_case="batch of 2, row 1, copies of itself",
    ...     num_comparisons=400, is_same_across_threads=None, exact_batch_sizes=(2, 3, 4, 8)))
    'the same bytes in batches of 2-4, 8 rows: pad up to the next of them'
    """
    match found.verdict:
        case BatchInvariance.BITWISE:
            return "the same bytes alone and in every batch"
        case BatchInvariance.FIXED_SHAPES:
            return (
                f"the same bytes in batches of {join_sizes(found.exact_batch_sizes)} rows: pad up to the next of them"
            )
        case BatchInvariance.TOLERANCE:
            return "the same up to rounding, no decision differs"
        case BatchInvariance.INTERFERENCE:
            return "a row's answer depends on what shares its batch: run rows one at a time"
        case BatchInvariance.NOT_BATCHABLE:
            return "the model takes one row a call"


def describe_comparisons(found: InvarianceVerdict) -> str:
    """Say how hard it was looked for, and what was worst."""
    if found.verdict is BatchInvariance.NOT_BATCHABLE:
        return "nothing to compare"
    sizes = (
        f", batch sizes {join_sizes(found.covered_batch_sizes)} covered" if len(found.covered_batch_sizes) > 1 else ""
    )
    compared = f"{found.num_comparisons:,} comparisons{sizes}"
    if not found.worst_case:
        return f"{compared}, not a bit differed"
    flips = _flips(found.num_flips)
    return f"{compared}, worst difference {found.max_difference:.2g} ({found.worst_case}){flips}"


def describe_threads(found: InvarianceVerdict) -> str:
    """Say with which numbers of threads the answers were the same bytes."""
    counts = ", ".join(map(str, found.thread_counts))
    if found.is_same_across_threads is None:
        return f"only {counts or 'one number'} measured"
    if found.is_same_across_threads:
        return f"the same bytes with {counts} threads{_hashed(found)}"
    other = ", ".join(map(str, found.differing_thread_counts))
    return f"other bytes with {other} threads than with {found.thread_counts[0]}: keep the number fixed"


def describe_processes(found: InvarianceVerdict) -> str:
    """Say whether newly started processes gave the same bytes."""
    num = found.num_fresh_processes
    if found.is_same_in_fresh_processes is None:
        return "not compared"
    processes = "1 fresh process" if num == 1 else f"{num} fresh processes"
    same = "the same" if found.is_same_in_fresh_processes else "other"
    return f"{same} bytes in {processes}{_hashed(found)}"


def describe_padding(found: InvarianceVerdict) -> str:
    """Say what padding a row to a longer neighbour does; empty for a model without a mask over a dynamic axis."""
    padding = found.padding
    if padding is None:
        return ""
    if padding.verdict is BatchInvariance.BITWISE:
        return f"the same bytes when padded to a longer neighbour, {padding.num_comparisons} comparisons"
    flips = _flips(padding.num_flips)
    word = "up to rounding" if padding.verdict is BatchInvariance.TOLERANCE else "NOT the same"
    return (
        f"{word} when padded to a longer neighbour, {padding.num_comparisons} comparisons, "
        f"worst difference {padding.max_difference:.2g} ({padding.worst_case}){flips}"
    )


def _hashed(found: InvarianceVerdict) -> str:
    sizes = found.hashed_batch_sizes
    return f", batches of {join_sizes(sizes)}" if len(sizes) > 1 else ", rows alone" if sizes else ""


def _flips(num: int) -> str:
    if num == 0:
        return ""
    return ", 1 decision differs" if num == 1 else f", {num:,} decisions differ"
