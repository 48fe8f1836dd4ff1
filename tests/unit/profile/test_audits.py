"""What several audits of one variant, each with another number of threads, say together."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwardpass.core.variants import BatchInvariance
from forwardpass.profile.audits import AnswerDigest, InvarianceAudit, combine, conclude

BITWISE, FIXED, TOLERANCE, INTERFERENCE = (
    BatchInvariance.BITWISE,
    BatchInvariance.FIXED_SHAPES,
    BatchInvariance.TOLERANCE,
    BatchInvariance.INTERFERENCE,
)
ORDER = (BITWISE, FIXED, TOLERANCE, INTERFERENCE)


def audit(verdict: BatchInvariance, exact: Sequence[int] = (), *, num_flips: int = 0) -> InvarianceAudit:
    differs = verdict is not BITWISE
    return InvarianceAudit(
        verdict=verdict,
        max_difference=1e-7 if differs else 0.0,
        worst_case="batch of 2, row 1, copies of itself" if differs else "",
        num_comparisons=100,
        num_flips=num_flips,
        exact_batch_sizes=tuple(exact),
        covered_batch_sizes=tuple(range(1, 34)),
    )


fixed = st.sets(st.integers(1, 33), min_size=2).map(lambda sizes: audit(FIXED, sorted(sizes)))
audits = st.lists(fixed | st.sampled_from([audit(BITWISE), audit(TOLERANCE), audit(INTERFERENCE)]), min_size=1)


@given(audits)
def test_together_they_promise_what_each_of_them_does(found: list[InvarianceAudit]) -> None:
    together = combine(dict(enumerate(found, start=1)))
    assert ORDER.index(together.verdict) >= max(ORDER.index(each.verdict) for each in found)
    assert bool(together.exact_batch_sizes) == (together.verdict is FIXED)
    for each in found:
        assert set(together.exact_batch_sizes) <= set(each.exact_batch_sizes or each.covered_batch_sizes)
    assert together.num_comparisons == 100 * len(found)


@pytest.mark.parametrize(
    ("found", "verdict", "exact"),
    [
        ([audit(BITWISE), audit(BITWISE)], BITWISE, ()),
        ([audit(FIXED, (2, 3, 4)), audit(FIXED, (3, 4, 5))], FIXED, (3, 4)),
        ([audit(FIXED, (2, 3, 4)), audit(BITWISE)], FIXED, (2, 3, 4)),
        ([audit(FIXED, (2, 3)), audit(FIXED, (3, 4))], TOLERANCE, ()),
        ([audit(FIXED, (2, 3), num_flips=1), audit(FIXED, (3, 4))], INTERFERENCE, ()),
        ([audit(FIXED, (2, 3)), audit(INTERFERENCE)], INTERFERENCE, ()),
    ],
)
def test_sizes_are_exact_only_if_they_are_with_every_number_of_threads(
    found: list[InvarianceAudit], verdict: BatchInvariance, exact: tuple[int, ...]
) -> None:
    together = combine(dict(enumerate(found, start=1)))
    assert (together.verdict, together.exact_batch_sizes) == (verdict, exact)


def test_threads_and_fresh_processes_are_compared_with_the_first_process() -> None:
    def digests(text: str) -> list[AnswerDigest]:
        return [AnswerDigest(batch_size=1, sha256=text), AnswerDigest(batch_size=8, sha256=text)]

    ours, other = digests("a"), digests("b")
    same = conclude({1: audit(BITWISE)}, {1: ours, 2: ours}, [ours, ours])
    assert (same.is_same_across_threads, same.is_same_in_fresh_processes, same.num_fresh_processes) == (True, True, 2)
    assert (same.hashed_batch_sizes, same.exact_thread_counts) == ((1, 8), (1, 2))
    differing = conclude({1: audit(BITWISE), 2: audit(FIXED, (2, 4))}, {1: ours, 2: other, 4: ours}, [ours, other])
    assert (differing.differing_thread_counts, differing.exact_thread_counts) == ((2,), (1, 4))
    assert (differing.is_same_across_threads, differing.is_same_in_fresh_processes) == (False, False)
    assert (differing.verdict, differing.exact_batch_sizes) == (FIXED, (2, 4))
    assert differing.worst_case.endswith(", 2 threads")
    alone = conclude({1: audit(BITWISE)}, {1: ours}, [])
    assert (alone.is_same_across_threads, alone.is_same_in_fresh_processes) == (None, None)
    assert alone.exact_thread_counts == ()
