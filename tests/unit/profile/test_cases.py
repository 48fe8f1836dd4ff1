"""The plan of an audit: what it covers at each stage."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from forwardpass.profile.cases import Neighbours, PoolShape, Stage, plan_audit
from forwardpass.profile.gaps import describe_gaps, join_sizes

HOSTILE = (Neighbours.OUTLIERS, Neighbours.ZEROS)
shapes = st.tuples(st.integers(1, 12), st.integers(1, 12)).map(
    lambda pair: PoolShape(num_rows=max(pair), num_targets=min(pair))
)


@settings(max_examples=30, deadline=None)
@given(st.lists(shapes, min_size=1, max_size=3), st.integers(1, 12))
def test_every_stage_covers_what_it_says_and_nothing_is_planned_twice(
    pools: list[PoolShape], max_batch_size: int
) -> None:
    blocks = plan_audit(pools, HOSTILE, max_batch_size=max_batch_size)
    cases = [case for block in blocks for case in block.cases]
    assert max(Counter(cases).values()) == 1
    for case in cases:
        shape = pools[case.pool]
        assert all(0 <= row < shape.num_rows for row in case.rows)
        assert all(case.rows[position] < shape.num_targets for position in case.tested)
        assert case.tested
    targets = {(pool, row) for pool, shape in enumerate(pools) for row in range(shape.num_targets)}
    early = [case for block in blocks if block.stage is not Stage.EVERY_POSITION for case in block.cases]
    for size in range(1, max_batch_size + 1):
        rows = {
            (case.pool, case.rows[position])
            for case in early
            if case.batch_size == size
            for position in case.tested
            if case.neighbours is Neighbours.ORDINARY
        }
        assert rows == targets
        for kind in HOSTILE if size > 1 else ():
            positions = {p for case in early if (case.batch_size, case.neighbours) == (size, kind) for p in case.tested}
            assert positions == set(range(size))
        everywhere = {
            (case.pool, case.rows[position], position)
            for case in cases
            if case.batch_size == size
            for position in case.tested
        }
        assert everywhere >= {(*target, position) for target in targets for position in range(size)}


def test_the_first_batch_puts_a_row_beside_an_outlier() -> None:
    first = plan_audit([PoolShape(num_rows=4, num_targets=4)], HOSTILE)[0].cases[0]
    assert (first.batch_size, first.tested, first.neighbours) == (2, (0,), Neighbours.OUTLIERS)


def test_what_was_left_out_is_said_in_sentences() -> None:
    blocks = plan_audit([PoolShape(num_rows=4, num_targets=4)], HOSTILE, max_batch_size=8)
    all_run = [len(block.cases) for block in blocks]
    everything = range(1, 9)

    def gaps(num_run: list[int], covered: range, *, is_mixing: bool = False) -> tuple[str, ...]:
        return describe_gaps(blocks, num_run, covered=covered, is_mixing=is_mixing, rows_are_alike=False)

    assert gaps(all_run, everything) == ()
    assert gaps(all_run, range(1, 6)) == ("Not covered for lack of time: batch sizes 6-8.",)
    assert gaps([0] * len(blocks), everything) == (
        "Every position was seen, but not every row at every position: batch sizes 2-8.",
    )
    assert gaps(all_run, range(1, 6), is_mixing=True) == ("Interference was found, and the rest was left out.",)


@given(st.sets(st.integers(1, 40), min_size=1).map(sorted))
def test_joined_sizes_read_back_as_the_same_sizes(sizes: list[int]) -> None:
    read: list[int] = []
    for part in join_sizes(sizes).split(", "):
        low, _, high = part.partition("-")
        read.extend(range(int(low), int(high or low) + 1))
    assert read == sizes
