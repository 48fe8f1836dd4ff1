"""How a variant is run, as its evidence says and the operator asks."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from forwardpass.bundle import BundledVariant, GoldenRecord, PaddingRecord
from forwardpass.core.latency import LatencyPoint, LatencyTable
from forwardpass.core.slo import Slo
from forwardpass.core.variants import BatchInvariance, Format, Precision, Recipe
from forwardpass.serve.settings import LowLoadThreads, ModelSettings, SameAnswer
from forwardpass.serve.sizing import choose_sizing, paddable_axes

BITWISE, FIXED, TOLERANCE, INTERFERENCE = (
    BatchInvariance.BITWISE,
    BatchInvariance.FIXED_SHAPES,
    BatchInvariance.TOLERANCE,
    BatchInvariance.INTERFERENCE,
)


def table(milliseconds: Mapping[int, float], num_threads: int = 1) -> LatencyTable:
    points = (LatencyPoint(batch_size=n, p50_s=ms / 1e3, p95_s=ms / 1e3) for n, ms in milliseconds.items())
    return LatencyTable(num_threads=num_threads, points=tuple(points))


def variant(
    invariance: BatchInvariance,
    *tables: LatencyTable,
    exact: tuple[int, ...] = (),
    padding: BatchInvariance | None = None,
    exact_threads: tuple[int, ...] = (),
    format: Format = Format.ONNX,  # noqa: A002
) -> BundledVariant:
    return BundledVariant(
        name="v",
        format=format,
        precision=Precision.FP32,
        path="v.onnx",
        recipe=Recipe(),
        invariance=invariance,
        golden=GoldenRecord(path="g", tolerance=1e-4),
        exact_batch_sizes=exact,
        exact_thread_counts=exact_threads,
        padding=PaddingRecord(axis="length", invariance=padding) if padding else None,
        latency=tables,
    )


STEEP = table({1: 10, 2: 20, 8: 80})
FLAT = table({1: 10, 2: 10.5, 8: 14})
GAINING = table({1: 10, 2: 15, 8: 40})


@pytest.mark.parametrize(
    ("invariance", "measured", "exact", "asked", "most", "sizes"),
    [
        (BITWISE, GAINING, (), SameAnswer.AFFORDABLE, 8, ()),
        (FIXED, STEEP, (2, 8), SameAnswer.AFFORDABLE, 1, (1,)),  # one by one nobody shares anything
        (FIXED, FLAT, (2, 8), SameAnswer.AFFORDABLE, 8, (2, 8)),
        (FIXED, GAINING, (2, 8), SameAnswer.AFFORDABLE, 8, ()),
        (FIXED, GAINING, (2, 8), SameAnswer.BITWISE, 8, (2, 8)),
        (FIXED, GAINING, (2, 3), SameAnswer.BITWISE, 3, (2, 3)),
        (FIXED, GAINING, (16, 32), SameAnswer.BITWISE, 16, (16, 32)),
        (FIXED, FLAT, (2, 8), SameAnswer.ROUNDING, 8, ()),
        (INTERFERENCE, GAINING, (), SameAnswer.ROUNDING, 1, ()),
    ],
)
def test_batches_are_as_large_as_pays_and_as_equal_as_asked(
    invariance: BatchInvariance,
    measured: LatencyTable,
    exact: tuple[int, ...],
    asked: SameAnswer,
    most: int,
    sizes: tuple[int, ...],
) -> None:
    chosen = choose_sizing(
        variant(invariance, measured, exact=exact), ModelSettings(same_answer=asked), slo=None, num_cores=2
    )
    assert (chosen.max_batch_rows, chosen.batch_sizes) == (most, sizes)


@pytest.mark.parametrize(
    ("invariance", "padding", "asked", "is_padded"),
    [
        (BITWISE, BITWISE, SameAnswer.AFFORDABLE, True),
        (BITWISE, TOLERANCE, SameAnswer.AFFORDABLE, False),
        (BITWISE, TOLERANCE, SameAnswer.ROUNDING, True),
        (TOLERANCE, TOLERANCE, SameAnswer.AFFORDABLE, True),
        (BITWISE, None, SameAnswer.ROUNDING, False),
    ],
)
def test_shapes_are_padded_only_where_that_keeps_what_the_variant_keeps(
    invariance: BatchInvariance, padding: BatchInvariance | None, asked: SameAnswer, is_padded: bool
) -> None:
    assert paddable_axes(variant(invariance, padding=padding), asked) == (("length",) if is_padded else ())


def test_several_slow_workers_are_taken_only_if_their_batches_keep_the_target() -> None:
    """Two workers of one thread do 1.5 times the rows of one with two threads, but each row takes longer."""
    both = variant(BITWISE, table({1: 40}, 1), table({1: 30}, 2))
    relaxed = choose_sizing(both, ModelSettings(), slo=Slo(percent=99, limit_s=0.1), num_cores=2)
    tight = choose_sizing(both, ModelSettings(), slo=Slo(percent=99, limit_s=0.06), num_cores=2)
    assert (relaxed.num_workers, relaxed.num_threads) == (2, 1)
    assert (tight.num_workers, tight.num_threads) == (1, 2)


@pytest.mark.parametrize(
    ("limit_s", "megabytes", "workers_and_threads"),
    [(0.1, 40, (2, 1)), (None, 40, (1, 2)), (0.025, 40, (1, 2))],
)
def test_a_target_lets_workers_of_one_thread_win_if_they_are_in_time_and_not_too_large(
    limit_s: float | None, megabytes: int, workers_and_threads: tuple[int, int]
) -> None:
    """As measured of an encoder of six layers, where the two workers did 178 rows/s and the two threads 147."""
    both = variant(
        BITWISE, table({1: 13.5, 2: 24.5, 4: 46.2, 8: 92.9}, 1), table({1: 9.0, 2: 15.3, 4: 28.0, 8: 49.3}, 2)
    )
    slo = Slo(percent=99, limit_s=limit_s) if limit_s is not None else None
    chosen = choose_sizing(both, ModelSettings(), slo=slo, num_cores=2, variant_bytes=megabytes * 10**6)
    assert (chosen.num_workers, chosen.num_threads) == workers_and_threads


@pytest.mark.parametrize(("row_ms", "num_workers"), [(5, 2), (0.5, 2), (0.1, 1)])
def test_every_core_gets_a_worker_unless_the_front_needs_it(row_ms: float, num_workers: int) -> None:
    chosen = choose_sizing(variant(BITWISE, table({1: row_ms})), ModelSettings(), slo=None, num_cores=2)
    assert chosen.num_workers == num_workers


ONE = table({1: 13.5, 2: 24.5, 4: 46.2, 8: 92.9}, 1)
TWO = table({1: 7.3, 2: 14.3, 4: 28.0, 8: 49.3}, 2)
HARDLY = table({1: 11.0, 2: 20.0, 4: 38.0, 8: 70.0}, 2)
SLO = Slo(percent=99, limit_s=0.1)


@pytest.mark.parametrize(
    ("tables", "settings", "megabytes", "num_cores", "threads_when_alone"),
    [
        ((ONE, TWO), ModelSettings(), 40, 2, 2),
        ((ONE, TWO), ModelSettings(low_load_threads=LowLoadThreads.OFF), 40, 2, None),
        ((ONE, TWO), ModelSettings(num_threads=1), 40, 2, None),  # which the operator has said of every request
        ((ONE, TWO), ModelSettings(num_workers=1), 40, 2, None),
        ((ONE, HARDLY), ModelSettings(), 40, 2, None),
        ((ONE, TWO), ModelSettings(), 4000, 2, 2),  # its weights are there once
        ((ONE, TWO), ModelSettings(), 40, 1, None),
        ((ONE,), ModelSettings(), 40, 2, None),
        ((), ModelSettings(num_workers=2), 40, 2, None),
    ],
)
def test_a_lone_request_has_all_cores_where_that_is_wanted_and_clearly_sooner_and_small(
    tables: tuple[LatencyTable, ...],
    settings: ModelSettings,
    megabytes: int,
    num_cores: int,
    threads_when_alone: int | None,
) -> None:
    chosen = choose_sizing(
        variant(TOLERANCE, *tables), settings, slo=SLO, num_cores=num_cores, variant_bytes=megabytes * 10**6
    )
    assert (chosen.wide.num_threads if chosen.wide else None) == threads_when_alone


@pytest.mark.parametrize(
    ("invariance", "exact_threads", "asked", "has_wide"),
    [
        (BITWISE, (1, 2), SameAnswer.AFFORDABLE, True),
        (BITWISE, (), SameAnswer.AFFORDABLE, False),
        (BITWISE, (), SameAnswer.ROUNDING, True),
        (BITWISE, (1, 4), SameAnswer.BITWISE, False),
        (FIXED, (), SameAnswer.AFFORDABLE, True),  # answers are the same up to rounding anyway
        (FIXED, (), SameAnswer.BITWISE, False),
        (FIXED, (1, 2), SameAnswer.BITWISE, True),
        (TOLERANCE, (), SameAnswer.AFFORDABLE, True),
        (INTERFERENCE, (), SameAnswer.AFFORDABLE, False),
        (INTERFERENCE, (1, 2), SameAnswer.AFFORDABLE, True),
    ],
)
def test_a_lone_request_has_all_cores_only_if_its_answer_is_as_equal_as_asked(
    invariance: BatchInvariance, exact_threads: tuple[int, ...], asked: SameAnswer, has_wide: bool
) -> None:
    exact = (2, 8) if invariance is FIXED else ()
    tested = variant(invariance, ONE, TWO, exact=exact, exact_threads=exact_threads)
    chosen = choose_sizing(tested, ModelSettings(same_answer=asked), slo=SLO, num_cores=2)
    assert chosen.num_workers == 2
    assert (chosen.wide is not None) == has_wide


@pytest.mark.parametrize(
    ("form", "megabytes", "num_workers", "has_wide"),
    [
        (Format.ONNX, 4000, 2, True),
        (Format.ORT, 300, 2, True),
        (Format.ORT, 400, 2, False),  # a third copy would pass a gibibyte
        (Format.ORT, 4000, 1, False),
    ],
)
def test_only_copies_that_are_not_shared_have_to_be_small(
    form: Format, megabytes: int, num_workers: int, has_wide: bool
) -> None:
    """Two workers do a little more than one of all cores, which is not enough for a large copy."""
    two = table({1: 8.2, 2: 14.3, 4: 28.0, 8: 49.3}, 2)
    chosen = choose_sizing(
        variant(TOLERANCE, ONE, two, format=form),
        ModelSettings(),
        slo=SLO,
        num_cores=2,
        variant_bytes=megabytes * 10**6,
    )
    assert (chosen.num_workers, chosen.wide is not None) == (num_workers, has_wide)


def test_only_sessions_that_have_threads_of_their_own_share_a_process() -> None:
    chosen = choose_sizing(
        variant(TOLERANCE, ONE, TWO, format=Format.TORCHSCRIPT), ModelSettings(), slo=SLO, num_cores=2
    )
    assert (chosen.num_workers, chosen.wide) == (2, None)
