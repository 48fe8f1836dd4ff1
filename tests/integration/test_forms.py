"""Other forms than ONNX: each is run by its own library, nothing of ours in between, and answers like the source."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner

import forwardpass
from forwardpass.bundle import open_bundle
from forwardpass.cli.app import root
from forwardpass.convert import Conversion, TorchSource, convert
from forwardpass.core.samples import SampleGroup, Samples
from forwardpass.core.tensors import Array
from forwardpass.core.variants import SUFFIXES, BatchInvariance, Format
from forwardpass.errors import (
    DataDependentControlFlow,
    ExportFailed,
    InvalidModel,
    InvalidOption,
    MissingExtra,
    ParityFailed,
    SourceNotFound,
    UnsteadySource,
)
from forwardpass.predict import PackingList, VariantToPack, pack_bundle
from forwardpass.runtimes import RuntimeOptions, format_of, open_runtime
from tests.integration import conversion_sources as sources
from tests.models import MACHINE, write_mlp

SOURCES = "tests.integration.conversion_sources"
FORMS = (Format.ORT, Format.PT2, Format.TORCHSCRIPT, Format.OPENVINO)
TOLERANCE = 1e-5
"""Relative; all compute in float32 and sum in another order."""


def silent(text: str, *, done: float) -> None:
    assert 0 <= done <= 1


def token_samples() -> Samples:
    generator = np.random.default_rng(1)
    return Samples(groups=tuple(SampleGroup(inputs={"ids": generator.integers(0, 20, (6, size))}) for size in (3, 7)))


def make(form: Format, folder: Path, source: str = "tokens", samples: Samples | None = None) -> Conversion:
    out = folder / f"model{SUFFIXES[form]}"
    given = samples or token_samples()
    return convert(TorchSource(reference=f"{SOURCES}:{source}"), given, to=form, out=out, progress=silent)


@pytest.fixture(scope="module", params=FORMS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Conversion:
    return make(request.param, tmp_path_factory.mktemp("forms"))


def run_natively(form: Format, path: str, ids: Array) -> list[Array]:
    """Run a model with nothing but its library's own calls."""
    if form is Format.ORT:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return list(session.run(None, {"ids": ids}))
    if form is Format.OPENVINO:
        import openvino

        compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return [np.array(value) for value in compiled({"ids": ids}).values()]
    jit: Any = torch.jit
    load = jit.load if form is Format.TORCHSCRIPT else lambda file: torch.export.load(file).module()
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return [value.numpy() for value in load(path)(ids=torch.from_numpy(ids))]


def test_the_library_of_the_form_answers_like_the_source_at_sizes_never_seen(made: Conversion) -> None:
    ids = np.random.default_rng(9).integers(0, 20, (4, 5))
    with torch.inference_mode():
        expected = [value.numpy() for value in sources.tokens().eval()(torch.from_numpy(ids))]
    answers = run_natively(made.variant.format, made.variant.location, ids)
    for answer, reference in zip(answers, expected, strict=True):
        np.testing.assert_allclose(answer, reference, rtol=TOLERANCE, atol=TOLERANCE)


def test_the_runtime_declares_named_axes_and_outputs(made: Conversion) -> None:
    location = made.variant.location
    assert format_of(Path(location)) is made.variant.format
    runtime = open_runtime(made.variant.format, location, options=RuntimeOptions())
    assert [(spec.name, spec.shape) for spec in runtime.signature.inputs] == [("ids", ("batch", "sequence"))]
    assert [(spec.name, spec.shape) for spec in runtime.signature.outputs] == [
        ("output_0", ("batch", 4)),
        ("output_1", ("batch", "sequence", 4)),
    ]
    assert runtime.signature == made.signature


def test_answers_are_copies_that_the_next_call_does_not_write_over(made: Conversion) -> None:
    runtime = open_runtime(made.variant.format, made.variant.location, options=RuntimeOptions())
    first = runtime.run({"ids": np.full((2, 3), 1)})
    kept = {name: answer.copy() for name, answer in first.items()}
    runtime.run({"ids": np.full((2, 3), 7)})
    for name, answer in first.items():
        assert np.array_equal(answer, kept[name])


def test_every_output_is_compared_by_error_cosine_and_decisions(made: Conversion) -> None:
    assert len(made.parity) == 10
    assert [check.output for check in made.worst_outputs] == ["output_0", "output_1"]
    for check in made.worst_outputs:
        assert check.difference < TOLERANCE
        assert check.cosine == pytest.approx(1.0, abs=1e-6)
        assert check.num_flips == 0


def test_a_bundle_with_the_form_checks_its_golden_answers_and_predicts(made: Conversion, tmp_path: Path) -> None:
    call = {"ids": np.array([[1, 2, 3]])}
    packing = PackingList(
        name="forms",
        variants=[VariantToPack(variant=made.variant, invariance=BatchInvariance.TOLERANCE)],
        golden_inputs=[call],
        machine=MACHINE,
    )
    pack_bundle(tmp_path / "bundle", packing)
    assert open_bundle(tmp_path / "bundle").signature == made.signature
    answers = forwardpass.load(tmp_path / "bundle").predict(call)
    assert answers["output_1"].shape == (1, 3, 4)


def test_profile_measures_the_form_by_its_file(made: Conversion) -> None:
    settings = forwardpass.ProfileSettings(
        batch_sizes=(1, 2), thread_counts=(1,), num_rounds=3, round_s=0.01, num_cold_starts=1
    )
    (profile,) = forwardpass.profile_model(made.variant.location, settings=settings).profiles
    assert profile.batch_sizes == (1, 2)
    assert profile.runtime == open_runtime(made.variant.format, made.variant.location, options=RuntimeOptions()).name


def test_no_sample_of_the_users_is_in_the_file(tmp_path: Path) -> None:
    marked = np.full((6, 4), 0.123456789, np.float32)
    samples = Samples(groups=(SampleGroup(inputs={"x": marked, "y": marked[:, :3]}),))
    for form in FORMS:
        conversion = make(form, tmp_path, "two_inputs", samples)
        written = Path(conversion.variant.location).read_bytes()
        assert np.float32(0.123456789).tobytes() * 2 not in written, form


def test_torchscript_whose_outputs_have_names_becomes_onnx(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    arrays = {name: generator.standard_normal((6, width)).astype(np.float32) for name, width in (("x", 4), ("y", 3))}
    samples = Samples(groups=(SampleGroup(inputs=arrays),))
    script = make(Format.TORCHSCRIPT, tmp_path, "two_inputs", samples).variant.location
    source = TorchSource(reference=script)
    conversion = convert(source, samples, to=Format.ONNX, out=tmp_path / "m.onnx", progress=silent)
    assert [output.name for output in conversion.signature.outputs] == ["a", "b"]
    assert conversion.worst_difference < TOLERANCE
    assert (conversion.exporter, conversion.notes) == ("legacy", ()), "the one way for TorchScript is no second choice"


def test_an_onnx_file_becomes_ort_and_openvino_but_not_torch(tmp_path: Path) -> None:
    source = write_mlp(tmp_path / "mlp.onnx")
    for form in (Format.ORT, Format.OPENVINO):
        conversion = convert(source, None, to=form, out=tmp_path / f"mlp{SUFFIXES[form]}", progress=silent)
        assert conversion.worst_difference < TOLERANCE
    with pytest.raises(InvalidOption, match="nothing turns an ONNX file into pt2"):
        convert(source, None, to=Format.PT2, out=tmp_path / "mlp.pt2", progress=silent)


def test_a_name_of_another_format_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match=r"expected a name that ends with \.xml, for openvino"):
        convert(Path("none.onnx"), None, to=Format.OPENVINO, out=tmp_path / "model.onnx", progress=silent)


@pytest.mark.parametrize("form", [Format.PT2, Format.TORCHSCRIPT])
def test_control_flow_that_depends_on_values_names_its_line(form: Format, tmp_path: Path) -> None:
    samples = Samples(groups=(SampleGroup(inputs={"x": np.ones((4, 4), np.float32)}),))
    with pytest.raises(DataDependentControlFlow, match=r"conversion_sources\.py:\d+"):
        convert(sources.Branching(), samples, to=form, out=tmp_path / f"m{SUFFIXES[form]}", progress=silent)
    assert list(tmp_path.iterdir()) == []


def test_an_axis_that_torch_export_freezes_is_named(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    groups = tuple(
        SampleGroup(inputs={"x": generator.standard_normal((6, length, 4)).astype(np.float32)}) for length in (3, 7)
    )
    with pytest.raises(ExportFailed, match=r"fixes axis 1 of 'x' \(x_axis1\) at 7"):
        make(Format.PT2, tmp_path, "recurrent", Samples(groups=groups))
    assert make(Format.TORCHSCRIPT, tmp_path, "recurrent", Samples(groups=groups)).worst_difference < TOLERANCE


def test_a_form_that_answers_differently_is_not_kept(tmp_path: Path) -> None:
    samples = Samples(groups=(SampleGroup(inputs={"x": np.ones((4, 4), np.float32)}),))
    with pytest.raises(ParityFailed):  # the trace has the way of the two rows that it is made with
        convert(sources.OtherForTwoRows(), samples, to=Format.TORCHSCRIPT, out=tmp_path / "m.pt", progress=silent)
    with pytest.raises(UnsteadySource):  # it adds the number of calls: no trace can know
        convert(sources.Counting(), samples, to=Format.TORCHSCRIPT, out=tmp_path / "m.pt", progress=silent)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", FORMS)
def test_files_that_are_missing_or_something_else_are_told_in_a_sentence(form: Format, tmp_path: Path) -> None:
    path = tmp_path / f"model{SUFFIXES[form]}"
    with pytest.raises(SourceNotFound):
        open_runtime(form, str(path), options=RuntimeOptions())
    path.write_bytes(b"not a model")
    path.with_suffix(".bin").write_bytes(b"")
    with pytest.raises(InvalidModel) as caught:
        open_runtime(form, str(path), options=RuntimeOptions())
    assert "\n" not in str(caught.value)


def test_openvino_without_its_weights_says_which_file_is_missing(tmp_path: Path) -> None:
    conversion = make(Format.OPENVINO, tmp_path)
    Path(conversion.variant.location).with_suffix(".bin").unlink()
    with pytest.raises(SourceNotFound, match=r"model\.bin.*the weights of 'model\.xml' beside it"):
        open_runtime(Format.OPENVINO, conversion.variant.location, options=RuntimeOptions())


def test_the_command_line_writes_a_form_and_says_how_far_each_output_is(tmp_path: Path) -> None:
    source = write_mlp(tmp_path / "mlp.onnx")
    out = str(tmp_path / "mlp.xml")
    result = CliRunner().invoke(root, ["convert", str(source), "--to", "openvino", "--out", out])
    assert result.exit_code == 0, result.output
    assert "as-is + openvino" in result.output
    assert "cosine 1.000000" in result.output
    result = CliRunner().invoke(root, ["convert", str(source), "--to", "openvino", "--out", out, "--json"])
    document = json.loads(result.stdout)
    assert document["conversion"]["variant"]["format"] == "openvino"
    assert document["conversion"]["parity"][0]["outputs"][0]["output"] == "scores"


def test_executorch_without_its_package_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    source = TorchSource(reference=f"{SOURCES}:tokens")
    with pytest.raises(MissingExtra, match=r"pip install 'forwardpass\[executorch\]'"):
        convert(source, token_samples(), to=Format.EXECUTORCH, out=tmp_path / "m.pte", progress=silent)
    assert list(tmp_path.iterdir()) == []


def test_an_onnx_file_does_not_become_executorch_and_sizes_are_for_it_alone(tmp_path: Path) -> None:
    source = write_mlp(tmp_path / "mlp.onnx")
    with pytest.raises(InvalidOption, match="nothing turns an ONNX file into executorch"):
        convert(source, None, to=Format.EXECUTORCH, out=tmp_path / "mlp.pte", progress=silent)
    with pytest.raises(InvalidOption, match="expected it with --to executorch only: openvino takes any size"):
        convert(source, None, to=Format.OPENVINO, out=tmp_path / "mlp.xml", max_sizes={"batch": 4}, progress=silent)
