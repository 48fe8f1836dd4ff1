"""A whole search on a tiny model: everything measured, one chosen, failures contained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from forwardpass.core.metrics import METRICS
from forwardpass.core.samples import SampleGroup, Samples, SampleSplits, split_samples
from forwardpass.core.variants import Format, Precision, Variant
from forwardpass.errors import InvalidMetric, InvalidModel
from forwardpass.optimize import Optimization, OptimizeSettings, Verdict, candidates, optimize_model
from forwardpass.profile import ProfileSettings
from tests.models import write_fixed_batch, write_mlp

SETTINGS = OptimizeSettings(
    profile=ProfileSettings(
        batch_sizes=(1, 4), thread_counts=(1,), num_rounds=3, round_s=0.01, num_cold_starts=2, audit_budget_s=0.2
    )
)


def silent(text: str, *, done: float) -> None:
    assert 0 <= done <= 1


@pytest.fixture
def baseline(tmp_path: Path) -> Variant:
    path = write_mlp(tmp_path / "mlp.onnx")
    return Variant(name="onnx-fp32", format=Format.ONNX, precision=Precision.FP32, location=str(path))


@pytest.fixture(scope="module")
def splits() -> SampleSplits:
    generator = np.random.default_rng(6)
    pixels = generator.standard_normal((120, 64)).astype(np.float32)
    group = SampleGroup(inputs={"pixels": pixels}, labels=generator.integers(0, 10, 120))
    return split_samples(Samples(groups=(group,)), origin="test")


def run(baseline: Variant, splits: SampleSplits, folder: Path, metric: str = "cosine") -> Optimization:
    (folder / "work").mkdir(exist_ok=True)
    return optimize_model(
        baseline, baseline, splits, METRICS[metric], workdir=folder / "work", settings=SETTINGS, progress=silent
    )


def test_every_variant_is_measured_scored_and_judged(baseline: Variant, splits: SampleSplits, tmp_path: Path) -> None:
    result = run(baseline, splits, tmp_path)
    names = ["onnx-fp32", "onnx-graph", "fp16-storage", "int8-dynamic", "int8-static"]
    assert [candidate.variant.name for candidate in result.candidates] == names
    assert all(candidate.profile is not None and candidate.test is not None for candidate in result.candidates)
    assert sum(candidate.verdict is Verdict.CHOSEN for candidate in result.candidates) == 1
    assert result.find(result.chosen).reason == result.reason
    assert result.floor_score == pytest.approx(0.99)
    assert any("Only 24 calibration samples" in warning for warning in result.warnings)
    assert msgspec.json.decode(msgspec.json.encode(result), type=Optimization) == result
    exact = result.candidates[0]
    assert exact.test_difference is not None
    assert exact.test_difference.value == 0.0


def test_a_model_of_one_row_a_call_is_optimised_and_one_of_four_is_refused(tmp_path: Path) -> None:
    pixels = np.random.default_rng(6).standard_normal((40, 4)).astype(np.float32)
    few = split_samples(Samples(groups=(SampleGroup(inputs={"pixels": pixels}),)), origin="test")
    found = {}
    for num_rows in (1, 4):
        path = write_fixed_batch(tmp_path / f"{num_rows}.onnx", num_rows, mixes_rows=True)
        found[num_rows] = Variant(name="onnx-fp32", format=Format.ONNX, precision=Precision.FP32, location=str(path))
    assert all(item.verdict is not Verdict.FAILED for item in run(found[1], few, tmp_path).candidates)
    with pytest.raises(
        InvalidModel, match="'pixels' is fixed at 4, and a request is one row; export it with a dynamic"
    ):
        run(found[4], few, tmp_path)


def test_a_writer_that_fails_is_reported_and_the_others_go_on(
    baseline: Variant, splits: SampleSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a kernel is missing\nand more lines")

    monkeypatch.setattr(candidates, "write_dynamic", broken)
    result = run(baseline, splits, tmp_path)
    failed = result.find("int8-dynamic")
    assert (failed.verdict, failed.reason) == (Verdict.FAILED, "RuntimeError: a kernel is missing")
    assert result.find("int8-static").verdict is not Verdict.FAILED


def test_a_metric_without_its_labels_ends_the_search_with_a_sentence(
    baseline: Variant, splits: SampleSplits, tmp_path: Path
) -> None:
    def bare(samples: Samples) -> Samples:
        return Samples(groups=tuple(replace(group, labels=None) for group in samples.groups))

    unlabelled = SampleSplits(
        calibration=bare(splits.calibration), validation=bare(splits.validation), test=bare(splits.test)
    )
    with pytest.raises(InvalidMetric, match="the samples have no labels"):
        run(baseline, unlabelled, tmp_path, "accuracy")
