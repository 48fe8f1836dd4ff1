"""Forms that start sooner: the same bytes, in a bundle or not, and never on a processor that they do not suit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from forwardpass.bundle import open_bundle
from forwardpass.core.samples import Samples, SampleSplits
from forwardpass.core.variants import BatchInvariance, Format, Precision, Variant
from forwardpass.errors import InvalidModel, NothingGained
from forwardpass.optimize import OptimizeSettings, Target, Verdict
from forwardpass.optimize.mapped import MappedForm, build_mapped_form, mapped_forms
from forwardpass.predict import PackingList, VariantToPack, pack_bundle, verify_variant
from forwardpass.profile import ProfileSettings
from forwardpass.runtimes import RuntimeOptions, open_runtime
from forwardpass.wiring import ship_model
from tests.models import MACHINE, mlp_calls, write_mlp

TINY = ProfileSettings(
    batch_sizes=(1,), thread_counts=(1,), num_rounds=2, round_s=0.01, num_cold_starts=1, audit_budget_s=0.05,
    ship_audit_s=0.0,
)  # fmt: skip
FORMS = {form.suffix: form for form in mapped_forms(pin_processor=True)}


@pytest.fixture
def mlp(tmp_path: Path) -> Variant:
    location = write_mlp(tmp_path / "mlp.onnx")
    return Variant(name="onnx-fp32", format=Format.ONNX, precision=Precision.FP32, location=str(location))


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    path = tmp_path / "samples.npz"
    np.savez(path, pixels=np.random.default_rng(3).standard_normal((60, 64)).astype(np.float32))
    return path


def rows(path: Path) -> Samples:
    from forwardpass.samples import load_splits

    splits: SampleSplits = load_splits(str(path))
    return splits.calibration


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_bundle_carries_the_file_in_that_form_and_its_golden_answers_hold(
    mlp: Variant, samples: Path, tmp_path: Path, form: MappedForm
) -> None:
    made = build_mapped_form(mlp, form, rows(samples), tmp_path)
    assert made.name == f"onnx-fp32-{form.suffix}"
    assert made.format is form.format
    packing = PackingList(
        name="mlp",
        variants=[VariantToPack(variant=made, invariance=BatchInvariance.BITWISE, golden_tolerance=0.0)],
        golden_inputs=mlp_calls(),
        machine=MACHINE,
    )
    bundle = pack_bundle(tmp_path / "bundle", packing)
    for file in Path(made.location).parent.iterdir():
        file.unlink()
    again = open_bundle(bundle.path)
    assert verify_variant(again, made.name).difference == 0.0
    (tmp_path / "bundle").rename(tmp_path / "elsewhere")
    again = open_bundle(tmp_path / "elsewhere")
    assert verify_variant(again, made.name).difference == 0.0
    theirs = open_runtime(Format.ONNX, mlp.location, options=RuntimeOptions())
    for call, golden in zip(mlp_calls(), again.golden_calls(again.variant()), strict=True):
        for name, answer in theirs.run(call).items():
            assert golden.outputs[name].tobytes() == answer.tobytes()


def test_a_file_for_this_processor_is_refused_by_another(
    mlp: Variant, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = build_mapped_form(mlp, FORMS["pinned"], rows(samples), tmp_path)
    portable = build_mapped_form(mlp, FORMS["ort"], rows(samples), tmp_path)
    monkeypatch.setattr("forwardpass.runtimes.onnx.vector_layout", lambda: "x86_64 with 3 floats a vector")
    with pytest.raises(InvalidModel, match=r"it is laid out for .*, and this is x86_64 with 3 floats a vector; use a "):
        open_runtime(made.format, made.location, options=RuntimeOptions())
    assert open_runtime(portable.format, portable.location, options=RuntimeOptions()).signature.inputs


def test_a_form_that_answers_other_bytes_is_rejected_with_the_reason(
    mlp: Variant, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_mlp(tmp_path / "other.onnx", seed=5)
    form = MappedForm(
        suffix="ort",
        format=Format.ORT,
        write=lambda _, target: FORMS["ort"].write(other, target),
    )
    with pytest.raises(NothingGained, match=r"for a row alone, the answers are not the bytes of onnx-fp32"):
        build_mapped_form(mlp, form, rows(samples), tmp_path)
    assert not (tmp_path / "onnx-fp32-ort").exists()


def test_a_search_for_the_shortest_cold_start_tries_them_and_its_bundle_can_be_verified(
    mlp: Variant, samples: Path, tmp_path: Path
) -> None:
    shipment = ship_model(
        mlp.location,
        data=str(samples),
        out=tmp_path / "bundle",
        settings=OptimizeSettings(profile=TINY, target=Target.COLD_START, pin_processor=True),
    )
    found = {it.variant.name: it for it in shipment.optimization.candidates}
    for name in ("onnx-fp32-mapped", "onnx-fp32-ort", "onnx-fp32-pinned"):
        assert found[name].verdict is not Verdict.FAILED
        assert found[name].profile is not None
        assert found[name].files
        assert found[name].test == found["onnx-fp32"].test
    assert {file.name for file in found["onnx-fp32-mapped"].files} == {
        "onnx-fp32-mapped/model.onnx", "onnx-fp32-mapped/model.onnx.data",
    }  # fmt: skip
    assert shipment.golden
