"""What an audit of the same answer found. Plain values: processes send them to each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from forwardpass.core.variants import BatchInvariance

__all__ = [
    "MAX_DIFFERENCE",
    "AnswerDigest",
    "InvarianceAudit",
    "InvarianceVerdict",
    "PaddingFinding",
    "combine",
    "conclude",
    "differing_thread_counts",
]

MAX_DIFFERENCE = 1e-4
"""Relative error (norm of the difference over norm of the answer) that still counts as rounding: a float32 model
that sums in another order stays two orders below it, dynamic quantisation is two orders above."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerDigest:
    """A hash over the answers to the same rows in batches of one size: equal in two processes if the answers are."""

    batch_size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddingFinding:
    """How far an answer moves when its row is padded, its mask with it, to the length of a longer neighbour.

    `axis` is the dynamic axis that was padded; `max_difference` is the greatest relative error against the row alone
    at its own length.
    """

    axis: str
    max_difference: float
    worst_case: str
    num_comparisons: int
    num_flips: int

    @property
    def verdict(self) -> BatchInvariance:
        """Bitwise, rounding, or more than that."""
        if not self.worst_case:
            return BatchInvariance.BITWISE
        is_rounding = self.max_difference <= MAX_DIFFERENCE and not self.num_flips
        return BatchInvariance.TOLERANCE if is_rounding else BatchInvariance.INTERFERENCE


@dataclass(frozen=True, slots=True, kw_only=True)
class InvarianceAudit:
    """What was found in one process, and how hard it was looked for.

    `max_difference` is the greatest relative error of an answer in a batch against the same row alone; `worst_case`
    says where it was, and is empty if there was none. `num_flips` counts the answers that decided otherwise: another
    integer, or another greatest of a row of scores.
    """

    verdict: BatchInvariance
    max_difference: float
    worst_case: str
    num_comparisons: int
    num_flips: int = 0
    exact_batch_sizes: tuple[int, ...] = ()
    """Sizes at which answers are bitwise equal to each other; only where the verdict is `FIXED_SHAPES`."""
    covered_batch_sizes: tuple[int, ...] = ()
    """Sizes at which every row under test was seen, beside every kind of neighbour and at every position."""
    gaps: tuple[str, ...] = ()
    """What was left out, one sentence each; empty after a complete audit."""
    padding: PaddingFinding | None = None
    """None where no input is a mask over a dynamic axis: such rows are never padded to one another."""
    digests: tuple[AnswerDigest, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class InvarianceVerdict:
    """Whether answers depend on the batch, on the number of threads, or on the process.

    The fields up to `padding` are those of `InvarianceAudit`, from a process with `thread_counts[0]` threads and from
    one for each of `differing_thread_counts`: they hold with any one of these numbers as long as it stays the same.
    `is_same_across_threads` and `is_same_in_fresh_processes` compare bytes, of rows alone and in batches; they are None
    where only one thread count, or one process, was seen.
    """

    verdict: BatchInvariance
    max_difference: float
    worst_case: str
    num_comparisons: int
    is_same_across_threads: bool | None
    num_flips: int = 0
    exact_batch_sizes: tuple[int, ...] = ()
    covered_batch_sizes: tuple[int, ...] = ()
    gaps: tuple[str, ...] = ()
    padding: PaddingFinding | None = None
    thread_counts: tuple[int, ...] = ()
    differing_thread_counts: tuple[int, ...] = ()
    """Those whose answers are not the bytes of `thread_counts[0]`."""
    is_same_in_fresh_processes: bool | None = None
    num_fresh_processes: int = 0
    hashed_batch_sizes: tuple[int, ...] = ()
    """The batch sizes at which threads and processes were compared."""

    @property
    def exact_thread_counts(self) -> tuple[int, ...]:
        """Those of the `thread_counts` whose answers are the same bytes, in increasing order; empty if no two are."""
        same = sorted(set(self.thread_counts) - set(self.differing_thread_counts))
        return tuple(same) if len(same) > 1 else ()


def conclude(
    audits: Mapping[int, InvarianceAudit],
    by_threads: Mapping[int, Sequence[AnswerDigest]],
    fresh: Sequence[Sequence[AnswerDigest]],
) -> InvarianceVerdict:
    """Put together what was found with each number of threads, and in fresh processes.

    There is an audit for the first number of threads, which the fresh processes have too, and for every other one whose
    answers are not the same bytes: what holds for batches with one need not hold with the other.
    """
    audit = combine(audits)
    first = tuple(next(iter(by_threads.values())))
    differing = differing_thread_counts(by_threads)
    return InvarianceVerdict(
        verdict=audit.verdict,
        max_difference=audit.max_difference,
        worst_case=audit.worst_case,
        num_comparisons=audit.num_comparisons,
        num_flips=audit.num_flips,
        exact_batch_sizes=audit.exact_batch_sizes,
        covered_batch_sizes=audit.covered_batch_sizes,
        gaps=audit.gaps,
        padding=audit.padding,
        thread_counts=tuple(by_threads),
        is_same_across_threads=not differing if len(by_threads) > 1 else None,
        differing_thread_counts=differing,
        is_same_in_fresh_processes=all(tuple(it) == first for it in fresh) if fresh else None,
        num_fresh_processes=len(fresh),
        hashed_batch_sizes=tuple(digest.batch_size for digest in first),
    )


def combine(audits: Mapping[int, InvarianceAudit]) -> InvarianceAudit:
    """Return what holds with any one of the numbers of threads that were audited, as long as it stays the same."""
    found = list(audits.values())
    if len(found) == 1:
        return found[0]
    worst_threads = max(audits, key=lambda num: (audits[num].worst_case != "", audits[num].max_difference))
    worst = audits[worst_threads]
    paddings = [audit.padding for audit in found if audit.padding is not None]
    sizes = _common(audit.exact_batch_sizes or audit.covered_batch_sizes for audit in found)
    verdict = _joint_verdict(found, sizes)
    return InvarianceAudit(
        verdict=verdict,
        max_difference=worst.max_difference,
        worst_case=f"{worst.worst_case}, {worst_threads} threads" if worst.worst_case else "",
        num_comparisons=sum(audit.num_comparisons for audit in found),
        num_flips=sum(audit.num_flips for audit in found),
        exact_batch_sizes=sizes if verdict is BatchInvariance.FIXED_SHAPES else (),
        covered_batch_sizes=_common(audit.covered_batch_sizes for audit in found),
        gaps=tuple(dict.fromkeys(gap for audit in found for gap in audit.gaps)),
        padding=max(paddings, key=lambda it: (it.worst_case != "", it.max_difference), default=None),
        digests=found[0].digests,
    )


def _joint_verdict(audits: Sequence[InvarianceAudit], sizes: Sequence[int]) -> BatchInvariance:
    """Return the weakest verdict; fixed sizes hold only where at least two are exact with every number of threads."""
    verdicts = {audit.verdict for audit in audits}
    for weakest in (BatchInvariance.NOT_BATCHABLE, BatchInvariance.INTERFERENCE, BatchInvariance.TOLERANCE):
        if weakest in verdicts:
            return weakest
    if BatchInvariance.FIXED_SHAPES not in verdicts:
        return BatchInvariance.BITWISE
    if len(sizes) > 1:
        return BatchInvariance.FIXED_SHAPES
    is_rounding = all(audit.max_difference <= MAX_DIFFERENCE and not audit.num_flips for audit in audits)
    return BatchInvariance.TOLERANCE if is_rounding else BatchInvariance.INTERFERENCE


def _common(sizes: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(sorted(set.intersection(*map(set, sizes))))


def differing_thread_counts(by_threads: Mapping[int, Sequence[AnswerDigest]]) -> tuple[int, ...]:
    """Return the numbers of threads whose answers are not those of the first one.

    >>> one, other = (AnswerDigest(batch_size=1, sha256=text) for text in ("ab", "cd"))
    >>> differing_thread_counts({1: [one], 2: [one], 4: [other]})
    (4,)
    """
    digests = {num_threads: tuple(found) for num_threads, found in by_threads.items()}
    first = next(iter(digests.values()), ())
    return tuple(num_threads for num_threads, found in digests.items() if found != first)
