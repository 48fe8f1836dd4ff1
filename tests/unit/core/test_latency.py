"""The latency table predicts between and beyond its points."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from forwardpass.core.latency import LatencyPoint, LatencyTable

TABLES = st.lists(st.tuples(st.integers(1, 64), st.floats(1e-5, 1.0)), min_size=1, max_size=6, unique_by=lambda p: p[0])


def table_of(points: list[tuple[int, float]]) -> LatencyTable:
    ordered = tuple(LatencyPoint(batch_size=size, p50_s=at, p95_s=at * 1.5) for size, at in sorted(points))
    return LatencyTable(num_threads=1, points=ordered)


@given(TABLES)
def test_a_measured_size_is_predicted_as_measured(points: list[tuple[int, float]]) -> None:
    table = table_of(points)
    for point in table.points:
        assert table.predict_s(point.batch_size) == point.p95_s
        assert table.predict_median_s(point.batch_size) == point.p50_s


@given(TABLES, st.integers(1, 200))
def test_a_prediction_between_two_points_lies_between_them(points: list[tuple[int, float]], rows: int) -> None:
    table = table_of(points)
    smaller = [point for point in table.points if point.batch_size <= rows]
    larger = [point for point in table.points if point.batch_size >= rows]
    if smaller and larger:
        ends = (smaller[-1].p95_s, larger[0].p95_s)
        assert min(ends) * (1 - 1e-9) <= table.predict_s(rows) <= max(ends) * (1 + 1e-9)


def test_the_best_batch_is_the_smallest_that_is_about_as_good_as_any() -> None:
    linear = table_of([(1, 0.010), (2, 0.0199), (4, 0.0396)])
    amortised = table_of([(1, 0.010), (2, 0.011), (4, 0.013)])
    assert (linear.best_batch_size, amortised.best_batch_size) == (1, 4)
