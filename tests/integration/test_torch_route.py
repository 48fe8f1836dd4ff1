"""PyTorch's own programs: written, compiled, run by their runtimes, and entered in the search."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from torch._inductor import config

from forwardpass.cli import main
from forwardpass.core.metrics import METRICS
from forwardpass.core.samples import SampleGroup, Samples, split_samples
from forwardpass.core.tensors import Array, Signature, TensorSpec
from forwardpass.core.variants import Format, Precision, Variant
from forwardpass.errors import InvalidModel, InvalidOption, MissingCompiler, SourceNotFound
from forwardpass.optimize import OptimizeSettings, Route
from forwardpass.optimize.budget import Budget
from forwardpass.optimize.candidates import Workshop
from forwardpass.optimize.entries import Entry, Search
from forwardpass.optimize.optimizing import optimize_model
from forwardpass.optimize.results import ResultStore
from forwardpass.optimize.torch_route import PROGRAMS, make_torch
from forwardpass.optimize.torch_writers import TorchModel, write_compiled, write_int8_static_program
from forwardpass.runtimes import RuntimeOptions, format_of, open_runtime
from forwardpass.runtimes.compiled import PROCESSOR_ENTRY, CompiledRuntime
from forwardpass.runtimes.torch import TorchRuntime
from tests.integration.test_search import silent

SOURCE = "tests.integration.torch_modules:build_convolutional"
ONE = RuntimeOptions()


def samples(num_rows: int = 24) -> Samples:
    pixels = np.random.default_rng(5).standard_normal((num_rows, 1, 8, 8)).astype(np.float32)
    return Samples(groups=(SampleGroup(inputs={"pixels": pixels}),))


def model(reference: str = SOURCE, given: Samples | None = None) -> TorchModel:
    signature = Signature(
        inputs=(TensorSpec(name="pixels", dtype="float32", shape=("batch", 1, 8, 8)),),
        outputs=(TensorSpec(name="scores", dtype="float32", shape=("batch", 10)),),
    )
    return TorchModel(reference=reference, weights="", calibration=given or samples(), axes={}, signature=signature)


def workshop(folder: Path) -> Workshop:
    baseline = Variant(name="onnx-fp32", format=Format.ONNX, precision=Precision.FP32, location="")
    return Workshop(baseline=baseline, calibration=samples(), folder=folder, reduce_range=False)


def search(folder: Path) -> Search:
    store = ResultStore(folder / ".search")
    return Search(settings=OptimizeSettings(), store=store, budget=Budget(total_s=None), key="key")


def answers(entry: Entry, pixels: Array) -> Array:
    variant = entry.variant
    return open_runtime(variant.format, variant.location, options=ONE).run({"pixels": pixels})["scores"]


@pytest.fixture
def without_compiler() -> Iterator[None]:
    with config.patch({"cpp.cxx": (None, "no-such-compiler")}):
        yield


@pytest.mark.usefixtures("without_compiler")
def test_every_program_answers_nearly_like_the_source_and_holds_no_pickle(tmp_path: Path) -> None:
    entries = {it.variant.name: it for it in make_torch(model(), workshop(tmp_path), search(tmp_path), silent)}
    pixels = samples().groups[0].inputs["pixels"]
    expected = TorchRuntime.from_reference(SOURCE, options=ONE).run({"pixels": pixels})["scores"]
    limits = {"torch-fp32": 1e-6, "torch-int8-dynamic": 0.03, "torch-int8-weights": 0.02, "torch-int8-static": 0.05}
    for name, limit in limits.items():
        entry = entries[name]
        assert entry.failure == ""
        ours = answers(entry, pixels)
        assert np.linalg.norm(ours - expected) <= limit * np.linalg.norm(expected), name
        with zipfile.ZipFile(entry.variant.location) as archive:
            starts = [archive.read(member)[:2] for member in archive.namelist()]
        assert not [start for start in starts if start in (b"PK", b"\x80\x02", b"\x80\x04")]
        alone = np.concatenate([answers(entry, pixels[at : at + 1]) for at in range(3)])
        np.testing.assert_allclose(alone, ours[:3], rtol=1e-4, atol=1e-5)
    sizes = {name: Path(entries[name].variant.location).stat().st_size for name in limits}
    assert sizes["torch-int8-static"] < 0.6 * sizes["torch-fp32"]


@pytest.mark.usefixtures("without_compiler")
def test_without_a_compiler_the_compiled_forms_fail_in_a_sentence_and_the_others_stay(tmp_path: Path) -> None:
    entries = make_torch(model(), workshop(tmp_path), search(tmp_path), silent)
    failures = {it.variant.name: it.failure for it in entries if it.failure}
    assert list(failures) == [f"{program.name}-compiled" for program in PROGRAMS]
    assert set(failures.values()) == {str(MissingCompiler())}
    assert str(MissingCompiler()) == (
        "Compiling a program with PyTorch's Inductor needs a C++ compiler, and none was found. Install g++ (on Debian: "
        "apt-get install g++), or name one in the variable CXX."
    )
    again = make_torch(model(), workshop(tmp_path), search(tmp_path), silent)
    assert [it.variant for it in again] == [it.variant for it in entries]


@pytest.mark.usefixtures("without_compiler")
def test_without_torchao_what_needs_it_says_so_and_the_program_in_float_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ["torchao", "torchao.quantization", *(it for it in sys.modules if it.startswith("torchao."))]:
        monkeypatch.setitem(sys.modules, name, None)
    entries = {it.variant.name: it for it in make_torch(model(), workshop(tmp_path), search(tmp_path), silent)}
    assert entries["torch-fp32"].failure == ""
    for name in ("torch-int8-dynamic", "torch-int8-weights", "torch-int8-static"):
        assert entries[name].failure == (
            "Quantising a PyTorch module needs the package 'torchao'. "
            "Install it with: pip install 'forwardpass[torchao]'"
        )


@pytest.mark.usefixtures("without_compiler")
def test_what_has_no_layers_to_quantise_is_rejected_and_not_failed(tmp_path: Path) -> None:
    source = model("tests.integration.torch_modules:build_pooling")
    entries = {it.variant.name: it for it in make_torch(source, workshop(tmp_path), search(tmp_path), silent)}
    assert entries["torch-fp32"].failure == ""
    static = entries["torch-int8-static"]
    assert static.is_rejected
    assert static.failure == "There is nothing to quantise: no nn.Linear or nn.Conv with constant weights."
    assert entries["torch-int8-static-compiled"].failure.endswith("so there is nothing to compile.")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("factory", ["build_convolutional", pytest.param("build_products", marks=pytest.mark.slow)])
def test_a_compiled_program_runs_like_the_program_and_only_on_its_kind_of_processor(
    tmp_path: Path, factory: str
) -> None:
    """It compiles, which takes half a minute on a machine that does little else.

    Products alone are compiled another way, with their weights as constants.
    """
    source = model(f"tests.integration.torch_modules:{factory}")
    program, compiled = tmp_path / "program.pt2", tmp_path / "compiled.pt2"
    num_ranges = write_int8_static_program(source, program)
    assert num_ranges >= 2
    write_compiled(source, program, compiled, cache=tmp_path / "cache")
    assert format_of(program) is Format.PT2
    assert format_of(compiled) is Format.AOTINDUCTOR
    pixels = samples(7).groups[0].inputs["pixels"]
    reference = open_runtime(Format.PT2, str(program), options=ONE).run({"pixels": pixels})["scores"]
    for num_threads in (1, 2):
        runtime = open_runtime(Format.AOTINDUCTOR, str(compiled), options=RuntimeOptions(num_threads=num_threads))
        assert runtime.signature == source.signature
        for rows in (slice(0, 1), slice(0, 7)):
            ours = runtime.run({"pixels": pixels[rows]})["scores"]
            assert np.linalg.norm(ours - reference[rows]) <= 0.02 * np.linalg.norm(reference[rows])
    _check_foreign_processor(compiled, tmp_path / "foreign.pt2")


def _check_foreign_processor(compiled: Path, foreign: Path) -> None:
    """Say of the same archive that it was compiled for a processor with one more instruction set."""
    with zipfile.ZipFile(compiled) as source, zipfile.ZipFile(foreign, "w") as target:
        for member in source.namelist():
            content = source.read(member)
            if member.endswith(".wrapper_metadata.json"):
                metadata = json.loads(content)
                metadata[PROCESSOR_ENTRY] += " avx2048"
                content = json.dumps(metadata).encode()
            target.writestr(member, content)
    with pytest.raises(InvalidModel, match=r"compiled for a processor with avx2048, which this one lacks; compile it"):
        CompiledRuntime(str(foreign), options=ONE)


def test_what_is_no_compiled_program_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match="expected a program compiled by Inductor"):
        CompiledRuntime(str(tmp_path / "none.pt2"), options=ONE)
    (tmp_path / "text.pt2").write_text("no archive")
    with pytest.raises(InvalidModel, match=r"this torch cannot load the compiled program \(File is not a zip file\)"):
        CompiledRuntime(str(tmp_path / "text.pt2"), options=ONE)
    with zipfile.ZipFile(tmp_path / "empty.pt2", "w") as archive:
        archive.writestr("model/data/aotinductor/model/x.cpp", "")
    assert format_of(tmp_path / "empty.pt2") is Format.AOTINDUCTOR
    with pytest.raises(InvalidModel, match=r"it holds 0 files that end with \.wrapper\.so"):
        CompiledRuntime(str(tmp_path / "empty.pt2"), options=ONE)


def test_the_torch_route_is_for_torch_sources(tmp_path: Path) -> None:
    file = Variant(name="onnx-fp32", format=Format.ONNX, precision=Precision.FP32, location="model.onnx")
    with pytest.raises(
        InvalidOption, match=r"'torch' for --routes: expected onnx alone: the source is no PyTorch module"
    ):
        optimize_model(
            file,
            file,
            split_samples(samples(), origin="here"),
            METRICS["cosine"],
            workdir=tmp_path,
            settings=OptimizeSettings(routes=(Route.ONNX, Route.TORCH)),
            progress=silent,
        )


def test_a_route_that_is_not_there_is_named_with_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["optimize", SOURCE, "--data", "x.npz", "--out", "out", "--routes", "onnx,tensorrt"])
    assert ended.value.code == 2
    assert "'onnx,tensorrt' for --routes: expected onnx, torch, or both with a comma" in capsys.readouterr().err
