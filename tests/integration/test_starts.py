"""Ways to a shorter cold start: other forms of the same file, tried in real processes, that answer the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from forwardpass.core.calls import random_calls
from forwardpass.core.variants import Format, Precision, Variant
from forwardpass.profile import ProfileSettings, StartAdvice, StartStudy, profile_variants, starting
from forwardpass.runtimes import RuntimeOptions, companions, open_runtime
from forwardpass.runtimes.onnx import save_mapped, save_ort
from tests.models import write_mlp

TINY = ProfileSettings(
    batch_sizes=(1, 4), thread_counts=(1,), num_rounds=2, round_s=0.01, num_cold_starts=2, audit_budget_s=0.05
).with_start_trials(3)


def silent(text: str, *, done: float) -> None:
    assert 0 <= done <= 1


def profile(variant: Variant) -> StartStudy:
    signature = open_runtime(variant.format, variant.location, options=RuntimeOptions()).signature
    calls = random_calls(signature, (1, 4), {})
    (found,) = profile_variants([variant], calls, settings=TINY, progress=silent)
    assert found.starts is not None
    return found.starts


@pytest.fixture
def mlp(tmp_path: Path) -> Variant:
    return Variant(
        name="mlp", format=Format.ONNX, precision=Precision.FP32, location=str(write_mlp(tmp_path / "mlp.onnx"))
    )


def test_every_form_of_a_file_is_tried_and_answers_the_same(mlp: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "LEAST_MODEL_S", 0.0)
    study = profile(mlp)
    tried = {trial.what: trial for trial in study.trials}
    files = [trial for trial in study.trials if "mapped" in trial.what or "optimised" in trial.what]
    assert len(files) == 4
    for trial in files:
        assert not trial.failure
        assert trial.is_same_answer
        assert trial.saved_s is not None
        assert trial.saved_s.num_repetitions == 3
    assert tried["no compiled bytecode of Python beside the sources"].advice is StartAdvice.LOSS
    assert 0 < study.model_s.value < study.as_it_is_s.value


def test_the_file_of_a_small_model_is_left_alone_and_the_reader_is_told_why(
    mlp: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting, "LEAST_MODEL_S", 60.0)
    study = profile(mlp)
    assert not [trial for trial in study.trials if "mapped" in trial.what]
    assert "no other form of its file was tried, since none can save more" in study.note


def test_a_form_that_cannot_be_written_is_a_finding_about_that_form(
    mlp: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(starting, "LEAST_MODEL_S", 0.0)
    monkeypatch.setattr("forwardpass.runtimes.onnx.save_mapped", full)
    failed = [trial for trial in profile(mlp).trials if trial.advice is StartAdvice.FAILED]
    assert {trial.failure for trial in failed} == {"[Errno 28] No space left on device"}
    assert len(failed) == 2


@pytest.mark.parametrize("form", ["mapped", "mapped-optimised", "ort"])
def test_a_mapped_file_answers_the_same_bytes_in_every_batch(tmp_path: Path, form: str) -> None:
    source = write_mlp(tmp_path / "mlp.onnx")
    if form == "ort":
        target, format_ = tmp_path / "mlp.ort", Format.ORT
        save_ort(source, target)
    else:
        target, format_ = tmp_path / "mapped.onnx", Format.ONNX
        assert save_mapped(source, target, level="none" if form == "mapped" else "extended")
        (outside,) = companions(format_, target)
        assert target.stat().st_size < outside.stat().st_size
        if form == "mapped":
            onnx.checker.check_model(str(target))
    ours = open_runtime(format_, str(target), options=RuntimeOptions())
    theirs = open_runtime(Format.ONNX, str(source), options=RuntimeOptions())
    for num_rows in (1, 2, 3, 7, 16):
        call = {"pixels": np.random.default_rng(num_rows).standard_normal((num_rows, 64)).astype(np.float32)}
        for name, answer in theirs.run(call).items():
            assert ours.run(call)[name].tobytes() == answer.tobytes()
    assert ours.signature == theirs.signature
