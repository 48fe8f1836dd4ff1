"""`profile_variants` with real child processes on tiny models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Self

import msgspec
import numpy as np
import onnx
import pytest

from forwardpass.core.calls import CallSets
from forwardpass.core.variants import BatchInvariance, Format, Precision, Variant
from forwardpass.errors import ForwardpassError, InvalidModel, SourceNotFound
from forwardpass.profile import ProfileSettings, VariantProfile, profile_variants, session, speedup
from forwardpass.profile.process import ChildProcess
from tests.models import write_mlp

SETTINGS = ProfileSettings(
    batch_sizes=(1, 4), thread_counts=(1, 2), num_rounds=3, round_s=0.002, num_cold_starts=2, audit_budget_s=1.0
)


def silent(text: str, *, done: float) -> None:
    assert text
    assert 0 <= done <= 1


def variant(name: str, path: Path) -> Variant:
    return Variant(name=name, format=Format.ONNX, precision=Precision.FP32, location=str(path))


def random_calls(*batch_sizes: int) -> CallSets:
    generator = np.random.default_rng(3)
    return {
        size: tuple({"pixels": generator.standard_normal((size, 64)).astype(np.float32)} for _ in range(2))
        for size in batch_sizes
    }


@pytest.fixture(scope="module")
def profiles(tmp_path_factory: pytest.TempPathFactory) -> tuple[VariantProfile, ...]:
    folder = tmp_path_factory.mktemp("profile")
    variants = [variant("one", write_mlp(folder / "one.onnx")), variant("two", write_mlp(folder / "two.onnx", seed=1))]
    return profile_variants(variants, random_calls(1, 4, 8), settings=SETTINGS, progress=silent)


def test_every_cell_is_measured_with_every_percentile_above_the_one_before(
    profiles: tuple[VariantProfile, ...],
) -> None:
    assert [profile.variant for profile in profiles] == ["one", "two"]
    for profile in profiles:
        assert {(cell.num_threads, cell.batch_size) for cell in profile.cells} == {(1, 1), (1, 4), (2, 1), (2, 4)}
        for cell in profile.cells:
            assert 0 < cell.p50_s.value <= cell.p95_s.value <= cell.p99_s.value
            assert len(cell.round_p50_s) == SETTINGS.num_rounds
            assert cell.rows_per_s.value <= cell.batch_size / min(cell.round_p50_s) * 1.5


def test_fewer_processes_measure_the_same_cells_with_every_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    class Counted(ChildProcess):
        def __enter__(self) -> Self:
            started.append("")
            return super().__enter__()

    monkeypatch.setattr(session, "ChildProcess", Counted)
    variants = [variant("one", write_mlp(tmp_path / "one.onnx")), variant("two", write_mlp(tmp_path / "two.onnx"))]
    settings = replace(SETTINGS, num_rounds=5).in_fewer_processes(2, one_row_decides=True)
    calls = random_calls(1, 4)
    profiles = profile_variants(variants, calls, settings=settings, progress=silent)
    assert len(started) == 4  # for each one that measures everything, and one more that starts afresh
    for profile in profiles:
        assert {(cell.num_threads, cell.batch_size): len(cell.round_p50_s) for cell in profile.cells} == {
            (1, 1): 9, (2, 1): 9, (1, 4): 3, (2, 4): 3
        }  # fmt: skip
        assert profile.cold_start.total_s.num_repetitions == 2
        assert profile.cold_start.import_s.interval.low > 0.001
        assert profile.invariance.thread_counts == (1, 2)
        assert profile.invariance.is_same_in_fresh_processes is True
        assert profile.invariance.num_fresh_processes == 1
    assert speedup(profiles[1], profiles[0], num_threads=2).num_repetitions == 9
    started.clear()
    profile_variants(variants, calls, settings=SETTINGS, progress=silent)
    assert len(started) == 8


def test_the_phases_of_a_cold_start_fit_into_the_total(profiles: tuple[VariantProfile, ...]) -> None:
    for profile in profiles:
        cold = profile.cold_start
        assert cold.total_s.num_repetitions == 2
        parts = (cold.start_s, cold.import_s, cold.load_s, cold.first_run_s)
        assert all(part.value > 0 for part in parts)
        assert cold.import_s.value + cold.load_s.value + cold.first_run_s.value < cold.total_s.interval.high


def test_the_peak_of_memory_is_that_of_the_child_and_not_of_its_parent(profiles: tuple[VariantProfile, ...]) -> None:
    ballast = np.ones(60_000_000)  # 480 MB that a child must not seem to use
    for profile in profiles:
        assert 0 < profile.memory.added_bytes.value < profile.memory.peak_bytes.value < ballast.nbytes


def test_a_float_model_answers_the_same_in_any_batch_and_with_any_number_of_threads(
    profiles: tuple[VariantProfile, ...],
) -> None:
    for profile in profiles:
        assert profile.invariance.verdict is BatchInvariance.BITWISE
        assert profile.invariance.num_comparisons > 10
        assert profile.invariance.is_same_across_threads
        assert profile.invariance.thread_counts == (1, 2)
        assert profile.invariance.is_same_in_fresh_processes
        assert profile.invariance.num_fresh_processes == 2


def test_a_profile_survives_json_and_gives_a_table_for_each_thread_count(
    profiles: tuple[VariantProfile, ...],
) -> None:
    copy = msgspec.json.decode(msgspec.json.encode(profiles[0]), type=VariantProfile)
    assert copy == profiles[0]
    tables = copy.latency_tables()
    assert [table.num_threads for table in tables] == [1, 2]
    assert tables[0].predict_median_s(4) == copy.at(1, 4).p50_s.value


def test_the_speedup_of_a_variant_over_itself_is_exactly_one(profiles: tuple[VariantProfile, ...]) -> None:
    ratio = speedup(profiles[0], profiles[0])
    assert (ratio.value, ratio.interval.low, ratio.interval.high) == (1.0, 1.0, 1.0)


def test_a_batch_size_beyond_the_budget_is_skipped_and_said_so(tmp_path: Path) -> None:
    settings = ProfileSettings(
        batch_sizes=(1, 4, 8), thread_counts=(1,), num_rounds=3, round_s=1e-6, cell_budget_s=1e-9, num_cold_starts=1
    )
    calls = random_calls(1, 4, 8)
    (profile,) = profile_variants(
        [variant("slow", write_mlp(tmp_path / "m.onnx"))], calls, settings=settings, progress=silent
    )
    assert profile.batch_sizes == (1,)
    assert [cell.batch_size for cell in profile.skipped] == [4, 8]
    assert "9 calls would take about" in profile.skipped[0].reason
    assert profile.skipped[1].reason == "batch size 4 was already too slow"


@pytest.mark.parametrize(
    ("content", "kind", "sentence"),
    [
        (None, SourceNotFound, r"Cannot find '.*model\.onnx': expected an ONNX file\."),
        (b"not a model", InvalidModel, r"Cannot load the model '.*model\.onnx': .*"),
    ],
)
def test_a_variant_that_does_not_load_raises_what_its_runtime_raised(
    tmp_path: Path, content: bytes | None, kind: type[ForwardpassError], sentence: str
) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(kind, match=sentence):
        profile_variants([variant("broken", path)], random_calls(1), settings=SETTINGS, progress=silent)


def test_pytorch_and_onnx_runtime_are_measured_side_by_side(tmp_path: Path) -> None:
    settings = ProfileSettings(
        batch_sizes=(1,), thread_counts=(1,), num_rounds=3, round_s=0.002, num_cold_starts=1, audit_budget_s=0.1
    )
    source = Variant(
        name="source",
        format=Format.TORCH,
        precision=Precision.FP32,
        location="tests.integration.torch_modules:build",
    )
    converted = variant("onnx", write_mlp(tmp_path / "m.onnx"))
    profiles = profile_variants([source, converted], random_calls(1), settings=settings, progress=silent)
    assert [profile.runtime for profile in profiles] == ["torch", "onnxruntime"]
    assert profiles[0].file_bytes is None
    assert speedup(profiles[1], profiles[0]).num_repetitions == 3


def test_a_model_of_one_row_is_measured_with_one_row_only(tmp_path: Path) -> None:
    path = write_mlp(tmp_path / "m.onnx")
    model = onnx.load(str(path))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, str(path))
    (profile,) = profile_variants([variant("single", path)], random_calls(1, 4), settings=SETTINGS, progress=silent)
    assert profile.batch_sizes == (1,)
    assert profile.invariance.verdict is BatchInvariance.NOT_BATCHABLE
    assert profile.skipped[0].reason == "the model takes one row a call"
