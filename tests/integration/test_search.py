"""The search as a whole: a killed one goes on where it was, a budget is kept, an impossible floor is refused."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from forwardpass.core.measurement import Interval, Measurement
from forwardpass.core.metrics import METRICS
from forwardpass.core.samples import SampleGroup, Samples, SampleSplits, split_samples
from forwardpass.core.slo import QualityFloor
from forwardpass.core.variants import Format, Precision, Variant
from forwardpass.errors import InvalidOption
from forwardpass.optimize import (
    Optimization,
    OptimizeSettings,
    Target,
    brevity,
    comparing,
    making,
    optimize_model,
    optimizing,
    scoring,
)
from forwardpass.optimize.candidates import MIXED, WHOLE, Blueprint, Workshop, build
from forwardpass.optimize.evaluation import Answers
from forwardpass.optimize.evaluation import answer as answer_all
from forwardpass.optimize.forecast import Forecast
from forwardpass.optimize.gains import NodeGain, measure_gains
from forwardpass.optimize.results import ResultStore
from forwardpass.optimize.verdicts import choose_entry
from forwardpass.optimize.writers import nodes_in_8_bits
from forwardpass.profile import ProfileSettings
from tests.models import write_cnn

TINY = ProfileSettings(
    batch_sizes=(1, 4), thread_counts=(1,), num_rounds=2, round_s=0.01, num_cold_starts=2, audit_budget_s=0.05
)


def silent(text: str, *, done: float) -> None:
    assert 0 <= done <= 1


@pytest.fixture
def model(tmp_path: Path) -> Variant:
    path = write_cnn(tmp_path / "cnn.onnx")
    return Variant(name="onnx-fp32", format=Format.ONNX, precision=Precision.FP32, location=str(path))


def splits() -> SampleSplits:
    pixels = np.random.default_rng(2).standard_normal((60, 3, 8, 8)).astype(np.float32)
    return split_samples(Samples(groups=(SampleGroup(inputs={"pixels": pixels}),)), origin="test")


def search(
    model: Variant, folder: Path, settings: OptimizeSettings | None = None, also: Sequence[Variant] = ()
) -> Optimization:
    folder.mkdir(exist_ok=True)
    return optimize_model(
        model,
        model,
        splits(),
        METRICS["cosine"],
        workdir=folder,
        settings=settings or OptimizeSettings(profile=TINY),
        progress=silent,
        also=also,
    )


VICTIM = """
import sys
from pathlib import Path
from tests.integration.test_search import search
from forwardpass.core.variants import Format, Precision, Variant
path = sys.argv[1]
model = Variant(name="onnx-fp32", format=Format.ONNX, precision=Precision.FP32, location=path)
search(model, Path(sys.argv[2]))
"""


def test_a_search_that_is_killed_makes_and_measures_nothing_again(
    model: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    memory = work / ".search"
    victim = subprocess.Popen([sys.executable, "-c", VICTIM, model.location, str(work)])
    due_s = time.monotonic() + 60
    while victim.poll() is None and len(list(memory.glob("*.json"))) < 5 and time.monotonic() < due_s:
        time.sleep(0.005)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    known = {path.name: path.stat().st_mtime_ns for path in memory.glob("*.json")}
    assert len(known) >= 5

    made: list[str] = []

    def watched(blueprint: Blueprint, workshop: Workshop) -> Variant:
        made.append(blueprint.name)
        return build(blueprint, workshop)

    monkeypatch.setattr(making, "build", watched)
    first = search(model, work)
    assert "onnx-graph" not in made
    kept = {path.name: path.stat().st_mtime_ns for path in memory.glob("*.json")}
    again = [name for name, changed_ns in known.items() if kept[name] != changed_ns]
    assert not again

    made.clear()
    monkeypatch.setattr(comparing, "profile_variants", lambda *_, **__: pytest.fail("measured twice"))
    assert search(model, work) == first
    assert not made


def test_a_second_search_measures_no_node_again(model: Variant, tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "memory")
    calibration = splits().calibration
    first = measure_gains(Path(model.location), calibration, store=store, reduce_range=False)
    assert set(first) == {"plain", "depthwise", "classifier"}
    assert all(gain.float_s is not None and not gain.failure for gain in first.values())
    again = measure_gains(
        Path(model.location), calibration, store=store, reduce_range=False, has_time=lambda: pytest.fail("measured")
    )
    assert again == first


def test_without_time_the_float_model_is_still_measured_and_what_is_missing_is_said(
    model: Variant, tmp_path: Path
) -> None:
    result = search(model, tmp_path / "work", OptimizeSettings(profile=TINY, budget_s=0.001))
    assert [candidate.variant.name for candidate in result.candidates] == ["onnx-fp32"]
    assert result.chosen == "onnx-fp32"
    omitted = next(line for line in result.left_out if line.endswith("the budget of 0.001 s had no time left for it"))
    assert "int8-static, " in omitted
    assert " and int4-weights were not made: " in omitted


def test_what_is_slowest_at_a_glance_is_left_unmeasured_when_time_is_short(
    model: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def glance(files: Sequence[Path], inputs: object) -> list[float]:
        return [0.001 if file.stem == "int8-static-whole" else 0.002 for file in files]

    monkeypatch.setattr(comparing, "glance_at_files", glance)
    monkeypatch.setattr(comparing, "fit_profile", lambda settings, *facts: (settings, 2))
    result = search(model, tmp_path / "work", OptimizeSettings(profile=TINY, budget_s=600))
    assert [candidate.variant.name for candidate in result.candidates if candidate.profile is not None] == [
        "onnx-fp32",
        "int8-static-whole",
    ]
    assert any("int8-static, " in line and " not measured: the budget" in line for line in result.left_out)


BRIEF = OptimizeSettings(profile=TINY, is_brief=True)
HALF = Measurement(value=0.5, unit="ratio", interval=Interval(low=0.4, high=0.6), num_repetitions=5)
SLOWER = NodeGain(float_s=replace(HALF, unit="s"), static=HALF, inside=HALF)


def seconds_of(**known: float) -> Callable[[Sequence[Path], object, object], list[list[float]]]:
    """Return a glance that sees these times for files by stem, and 1 ms for all others."""
    return lambda files, inputs, timer: [[known.get(file.stem.replace("-", "_"), 1e-3)] * 5 for file in files]


def test_a_brief_search_makes_what_promises_and_measures_what_is_fastest_at_a_glance(
    model: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved_s = {"int8-static": 8e-4, WHOLE: 7e-4, "int8-dynamic": 1e-4, "int8-static-smooth": 8e-4, MIXED: 8.1e-4}
    saved_s["int8-dynamic-smooth"] = saved_s["int8-dynamic"]
    forecast = Forecast(saved_s={**saved_s, "onnx-graph": 0.0, "fp16-storage": 0.0, "int4-weights": -1.0}, float_s=1e-3)
    monkeypatch.setattr(optimizing, "forecast_savings", lambda *_: forecast)
    monkeypatch.setattr(brevity, "time_in_turns", seconds_of(int8_static=2e-4, int8_static_whole=3e-4))
    result = search(model, tmp_path / "work", BRIEF)
    assert [it.variant.name for it in result.candidates if it.profile is not None] == ["onnx-fp32", "int8-static"]
    assert {line.split(": ")[0]: line.split(": ")[1] for line in result.left_out} == {
        "onnx-graph and fp16-storage were not made": "the arithmetic is that of the float model",
        "int8-dynamic and int8-dynamic-smooth were not made": "foretold to save 100 µs of a call, where "
        "int8-static, which keeps the floor, saves 800 µs; requests could not share a batch",
        "int8-static-smooth was not made": "int8-static, which is as fast, keeps the floor with half of what may "
        "be lost to spare",
        "int8-mixed was not made": "foretold to save 810 µs of a call, where int8-static, which keeps the floor, "
        "saves 800 µs; that is hardly less, and it would take a search of its own",
        "int4-weights was not made": "no node would be faster than in float",
        "int8-static-whole was not measured": "at a glance it takes 1.5 times as long as int8-static",
    }
    assert [layer.is_in_8_bits for layer in result.layers if layer.name == "plain"] == [True]


@pytest.mark.parametrize(("by_all_s", "num_times"), [(7.99e-4, 1), (-1e-4, 2)])
def test_what_was_made_before_nodes_were_measured_is_made_again_only_if_that_pays(
    by_all_s: float, num_times: int, model: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved_s = {"int8-static": 8e-4, WHOLE: 7e-4, "int8-static-smooth": 8e-4, MIXED: 8e-4}
    forecast = Forecast(saved_s=saved_s, float_s=1e-3, saved_by_all_s=by_all_s)
    monkeypatch.setattr(optimizing, "forecast_savings", lambda *_: forecast)
    monkeypatch.setattr(making, "measure_gains", lambda *_, **__: {"plain": SLOWER})
    monkeypatch.setattr(brevity, "time_in_turns", seconds_of(int8_static=2e-4, int8_static_whole=3e-4))
    result = search(model, tmp_path / "work", BRIEF)
    made = [step.what for step in result.path]
    assert (made.count("int8-static"), made.count(WHOLE)) == (num_times, 1)
    assert result.find("int8-static").profile is not None
    in_8_bits = nodes_in_8_bits(onnx.load(result.find("int8-static").variant.location))
    assert {layer.name for layer in result.layers if layer.is_in_8_bits} == in_8_bits
    assert ("plain" in in_8_bits) == (num_times == 1)


def test_a_brief_search_makes_everything_when_what_promised_most_is_not_faster(
    model: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forecast = Forecast(saved_s={"int8-static": 1.0, WHOLE: 1.0, "int8-dynamic": 0.1, "onnx-graph": 0.0})
    monkeypatch.setattr(optimizing, "forecast_savings", lambda *_: forecast)
    monkeypatch.setattr(brevity, "time_in_turns", seconds_of())
    result = search(model, tmp_path / "work", BRIEF)
    assert not result.left_out
    names = {it.variant.name for it in result.candidates}
    assert names >= {"onnx-graph", "fp16-storage", "int8-dynamic", "int8-static", WHOLE}


def test_a_forecast_that_was_wrong_stays_forgotten_when_leaner_networks_are_quantised(
    model: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaner = replace(model, name="pruned", location=str(write_cnn(tmp_path / "pruned.onnx")))
    monkeypatch.setattr(brevity, "time_in_turns", seconds_of(int8_static_whole=2e-3))
    result = search(model, tmp_path / "work", BRIEF, also=[leaner])
    assert not result.left_out
    assert result.find(WHOLE).profile is not None
    assert result.find("pruned-int8-static").profile is not None


def test_a_brief_search_that_misses_the_floor_with_what_promises_goes_on(model: Variant, tmp_path: Path) -> None:
    floor = QualityFloor(max_drop=0.0, is_relative=True)
    result = search(model, tmp_path / "work", replace(BRIEF, floor=floor))
    tried = {step.what for step in result.path}
    assert tried >= {"onnx-graph", "int8-dynamic", "int8-static", WHOLE}
    assert not any("was not made" in line and "keeps the floor" in line for line in result.left_out)


def test_a_brief_search_starts_one_timer_and_scores_on_the_test_split_only_what_it_measures(
    model: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    scored: list[tuple[str, int]] = []
    popen, answer = subprocess.Popen, answer_all

    def watched(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        started.append(command)
        return popen(command, **options)

    def noted(variant: Variant, samples: Samples) -> Answers:
        scored.append((variant.name, len(samples)))
        return answer(variant, samples)

    monkeypatch.setattr(subprocess, "Popen", watched)
    monkeypatch.setattr(scoring, "answer", noted)
    forecast = Forecast(saved_s={"int8-static": 1e-3, WHOLE: 1e-3, "onnx-graph": 0.0, "int8-dynamic": -1.0})
    monkeypatch.setattr(optimizing, "forecast_savings", lambda *_: forecast)
    monkeypatch.setattr(brevity, "SURELY_AS_SLOW", 0.0)
    monkeypatch.setattr(brevity, "LEAST_GAIN", 0.0)  # the least is found, whatever this machine makes of tiny files
    result = search(model, tmp_path / "work", BRIEF)
    timers = [command for command in started if "forwardpass.optimize.timing" in str(command)]
    assert len(timers) == 1
    measured = {it.variant.name for it in result.candidates if it.profile is not None}
    validation, test = len(splits().validation), len(splits().test)
    assert validation != test
    assert {name for name, size in scored if size == test} == measured
    assert {name for name, size in scored if size == validation} >= {"onnx-fp32", WHOLE, "int8-static"}
    assert len(measured) < 3


def test_a_brief_search_tells_when_it_had_found_what_it_chose_and_when_that_was_proved(
    model: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def seen(files: Sequence[Path], inputs: object, timer: object) -> list[list[float]]:
        made.append(",".join(file.stem for file in files))
        return seconds_of(int8_static_whole=2e-4, int8_static=3e-4)(files, inputs, timer)

    forecast = Forecast(saved_s={"int8-static": 1e-3, WHOLE: 1e-3})
    monkeypatch.setattr(brevity, "time_in_turns", seen)
    monkeypatch.setattr(optimizing, "forecast_savings", lambda *_: forecast)
    monkeypatch.setattr(optimizing, "choose_entry", lambda *a, **k: replace(choose_entry(*a, **k), chosen=WHOLE))
    result = search(model, tmp_path / "work", BRIEF)
    assert made[0] == f"cnn,{WHOLE}"  # before anything else is made
    assert result.found_s is not None
    assert result.proved_s is not None
    assert 0 < result.found_s < result.proved_s
    assert "confirmed after" in result.course
    thorough = search(model, tmp_path / "thorough")
    assert thorough.found_s is None
    assert thorough.proved_s is not None


@pytest.mark.parametrize("target", [Target.COLD_START, Target.COST])
def test_every_target_has_a_gain_of_the_float_model_over_itself(model: Variant, tmp_path: Path, target: Target) -> None:
    result = search(model, tmp_path / "work", OptimizeSettings(profile=TINY, target=target))
    own = result.find("onnx-fp32").gain
    assert own is not None
    assert own.value == pytest.approx(1.0)
    assert all(candidate.reason for candidate in result.candidates)


def test_a_floor_that_the_source_misses_is_refused_with_what_to_do(model: Variant, tmp_path: Path) -> None:
    floor = QualityFloor(max_drop=float("inf"), is_relative=False, absolute=1.5)
    with pytest.raises(InvalidOption, match=r"'1.5' for --floor: expected at most 1, the cosine of the source itself"):
        search(model, tmp_path / "work", replace(OptimizeSettings(profile=TINY), floor=floor))
