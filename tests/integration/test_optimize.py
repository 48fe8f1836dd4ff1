"""A whole search on a tiny model: everything measured, one chosen, failures contained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

from forwardpass.core.metrics import METRICS
from forwardpass.core.samples import SampleGroup, Samples, SampleSplits, split_samples
from forwardpass.core.variants import Format, Precision, Variant
from forwardpass.errors import InvalidMetric, InvalidModel, InvalidSamples
from forwardpass.optimize import Optimization, OptimizeSettings, Verdict, candidates, optimize_model
from forwardpass.optimize.naming import load_named
from forwardpass.optimize.writers import write_graph
from forwardpass.profile import ProfileSettings
from forwardpass.runtimes import RuntimeOptions, open_runtime
from tests.models import write_fixed_batch, write_mlp, write_typed

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
    smooth = ["int8-dynamic-smooth", "int8-static-smooth"]
    found = [candidate.variant.name for candidate in result.candidates if candidate.variant.name != "int8-mixed"]
    assert found == [
        *names,
        "int8-static-whole",
        *smooth,
        "int8-weights",
        "int4-weights",
    ]  # whether nodes of this size gain in 8 bits is a matter of the machine
    assert len(result.layers) == 2
    assert all(layer.float_s is not None and layer.gain is not None and layer.gain_dynamic for layer in result.layers)
    assert all([item.gain is not None for item in layer.weights] == [True] * 3 for layer in result.layers)
    assert all(result.find(name).profile is not None and result.find(name).test is not None for name in names)
    assert all(result.find(name).reason.startswith("Nothing would be gained: no activation has") for name in smooth)
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


def test_a_process_that_dies_while_it_measures_costs_its_variant_only(
    baseline: Variant, splits: SampleSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def deadly(source: Path, target: Path) -> None:
        """Write a file that scores well here and kills the process that measures it."""
        write_graph(source, target)
        (tmp_path / "deadly").mkdir()
        (tmp_path / "deadly" / "sitecustomize.py").write_text(
            "import onnxruntime, os\n"
            "loads = onnxruntime.InferenceSession\n"
            "def session(model, *rest, **more):\n"
            "    if 'onnx-graph' in str(model): os.kill(os.getpid(), 9)\n"
            "    return loads(model, *rest, **more)\n"
            "onnxruntime.InferenceSession = session\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path / "deadly"))

    monkeypatch.setattr(candidates, "write_graph", deadly)
    result = run(baseline, splits, tmp_path)
    dead = result.find("onnx-graph")
    assert dead.verdict is Verdict.FAILED
    assert "measuring the variant 'onnx-graph' failed: it was killed (SIGKILL)" in dead.reason
    others = [item for item in result.candidates if item is not dead and item.verdict is not Verdict.NEEDLESS]
    assert all(item.profile is not None for item in others)


def test_a_model_with_nothing_to_quantise_says_so(tmp_path: Path) -> None:
    path = write_typed(tmp_path / "typed.onnx", "float32")
    model = Variant(name="onnx-fp32", format=Format.ONNX, precision=Precision.FP32, location=str(path))
    inputs = np.random.default_rng(6).standard_normal((40, 2)).astype(np.float32)
    result = run(model, split_samples(Samples(groups=(SampleGroup(inputs={"x": inputs}),)), origin="test"), tmp_path)
    sought = {"int8-static": "MatMul or Gemm or Conv", "int8-static-whole": "Conv"}
    for name in ("int8-dynamic", "int8-static", "int8-static-whole", "int8-dynamic-smooth", "int8-static-smooth"):
        operators = sought.get(name, "MatMul or Gemm")
        found = result.find(name)
        assert found.verdict is Verdict.NEEDLESS
        assert found.reason == f"There is nothing to quantise: no {operators} with constant weights."
    assert not list((tmp_path / "work").glob("int8*"))
    assert any("nothing in it can have fewer bits" in warning for warning in result.warnings)


def test_a_file_whose_nodes_share_a_name_is_told_what_to_do(tmp_path: Path) -> None:
    model = onnx.load(str(write_mlp(tmp_path / "mlp.onnx")))
    for node in model.graph.node:
        node.name = "same"
    onnx.save(model, str(tmp_path / "same.onnx"))
    with pytest.raises(InvalidModel, match=r"several of its nodes have the name 'same'\. Give each a name of its own"):
        open_runtime(Format.ONNX, str(tmp_path / "same.onnx"), options=RuntimeOptions())


def test_splits_that_share_a_sample_are_refused(baseline: Variant, splits: SampleSplits, tmp_path: Path) -> None:
    leaking = replace(splits, test=splits.validation)
    with pytest.raises(InvalidSamples, match="the splits validation and test share at least one sample"):
        run(baseline, leaking, tmp_path)


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


def test_a_variant_that_was_made_before_is_judged_as_it_is_and_in_int8(
    baseline: Variant, splits: SampleSplits, tmp_path: Path
) -> None:
    leaner = replace(baseline, name="pruned-50")
    result = optimize_model(
        baseline,
        baseline,
        splits,
        METRICS["cosine"],
        workdir=tmp_path,
        settings=SETTINGS,
        also=(leaner,),
        progress=silent,
    )
    for name in ("pruned-50", "pruned-50-int8-static"):
        assert result.find(name).profile is not None
    assert result.find("pruned-50-int8-static").variant.location == str(tmp_path / "pruned-50" / "int8-static.onnx")
    made = {it.name for it in (tmp_path / "pruned-50").iterdir()}
    assert made in ({"int8-static.onnx"}, {"int8-static.onnx", "int8-mixed.onnx"})  # whether mixing gains, it is told
    mixed = [it for it in result.candidates if it.variant.name == "pruned-50-int8-mixed"]
    assert all(it.profile is not None or "Nothing would be gained" in it.reason for it in mixed)
    exact = result.find("pruned-50").test_difference
    assert exact is not None
    assert exact.value == 0.0


def test_a_slow_node_stays_in_8_bits_where_the_product_before_it_needs_that(tmp_path: Path) -> None:
    source = write_mlp(tmp_path / "mlp.onnx")
    operators = ("MatMul", "Gemm")
    first, second = "Gemm#0", "Gemm#2"  # with a Relu between them
    assert candidates.not_slower(source, operators, {second}) == {first, second}
    assert candidates.not_slower(source, operators, {first}) == {second}
    assert candidates.completed(load_named(source), frozenset({first})) == {first, second}
    assert candidates.completed(load_named(source), frozenset({second})) == {second}
    assert candidates.not_slower(source, operators, {first, second}) == {second}
