"""Conversion: proved at every shape or refused, with the place named, and nothing half-written left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from forwardpass.convert import Conversion, TorchSource, convert_to_onnx, plain_weights
from forwardpass.core.samples import SampleGroup, Samples
from forwardpass.core.tensors import Array
from forwardpass.errors import (
    ConversionError,
    DataDependentControlFlow,
    ExportFailed,
    InvalidModel,
    InvalidSamples,
    SourceNotFound,
    UnsupportedOperator,
    UntrustedPickle,
)
from tests.integration import conversion_sources as sources
from tests.models import write_mlp

SOURCES = "tests.integration.conversion_sources"


def silent(text: str, *, done: float) -> None:
    assert 0 <= done <= 1


def samples(**arrays: Array) -> Samples:
    return Samples(groups=(SampleGroup(inputs=arrays),))


FOUR = samples(x=np.random.default_rng(1).standard_normal((20, 4)).astype(np.float32))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Conversion:
    """A module converted from samples of two lengths."""
    generator = np.random.default_rng(1)
    groups = tuple(SampleGroup(inputs={"ids": generator.integers(0, 20, (6, length))}) for length in (3, 7))
    out = tmp_path_factory.mktemp("convert") / "tokens.onnx"
    return convert_to_onnx(TorchSource(reference=f"{SOURCES}:tokens"), Samples(groups=groups), out=out, progress=silent)


def test_axes_that_differ_between_samples_become_dynamic_and_named(tokens: Conversion) -> None:
    assert tokens.exporter == "dynamo"
    assert [(spec.name, spec.shape) for spec in tokens.signature.inputs] == [("ids", ("batch", "sequence"))]
    assert [spec.name for spec in tokens.signature.outputs] == ["output_0", "output_1"]
    assert len(tokens.parity) == 10
    assert tokens.worst_difference < 1e-6
    assert Path(tokens.variant.location).is_file()


def test_a_module_in_memory_with_several_inputs_and_named_outputs(tmp_path: Path) -> None:
    both = samples(x=np.ones((5, 4), np.float32), y=np.ones((5, 3), np.float32))
    conversion = convert_to_onnx(sources.two_inputs(), both, out=tmp_path / "m.onnx", progress=silent)
    assert [spec.name for spec in conversion.signature.outputs] == ["a", "b"]
    assert [spec.shape for spec in conversion.signature.outputs] == [("batch", 4), ("batch",)]
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("module", [sources.FrozenNorm(), sources.Branching()], ids=["converted", "refused"])
def test_a_module_in_memory_is_left_as_it_was_found(module: torch.nn.Module, tmp_path: Path) -> None:
    module.train()
    for part in list(module.modules())[2:]:
        part.eval()  # frozen while the rest trains
    modes = [part.training for part in module.modules()]
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with contextlib.suppress(ConversionError):
            convert_to_onnx(module, FOUR, out=tmp_path / "m.onnx", progress=silent)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert [part.training for part in module.modules()] == modes


@pytest.mark.parametrize(
    ("module", "error", "words"),
    [
        (
            sources.Branching(),
            DataDependentControlFlow,
            "values of a tensor at conversion_sources.py:23",
        ),
        (sources.Unsupported(), UnsupportedOperator, "Cannot convert the operator 'aten.linalg_eig"),
        (sources.FrozenBatch(), ExportFailed, "the source itself does not run with x [1, 4]. A size is a constant"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else None,
)
def test_what_cannot_be_converted_is_named_and_leaves_nothing(
    module: torch.nn.Module, error: type[ConversionError], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error) as caught:
        convert_to_onnx(module, FOUR, out=tmp_path / "m.onnx", progress=silent)
    assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_samples_have_to_be_named_after_the_arguments(tmp_path: Path) -> None:
    with pytest.raises(InvalidSamples, match=r"they have an array 'x', but forward\(\) takes ids"):
        convert_to_onnx(sources.tokens(), FOUR, out=tmp_path / "m.onnx", progress=silent)
    wide = samples(ids=np.ones((4, 3), np.float64))
    with pytest.raises(InvalidSamples, match=r"forward\(\) raised RuntimeError for ids float64\[2, 3\]"):
        convert_to_onnx(sources.tokens(), wide, out=tmp_path / "m.onnx", progress=silent)
    with pytest.raises(InvalidSamples, match="cannot be traced without inputs"):
        convert_to_onnx(sources.tokens(), None, out=tmp_path / "m.onnx", progress=silent)


# --- ONNX files


def test_an_onnx_file_is_checked_and_its_external_data_folded_in(tmp_path: Path) -> None:
    model = onnx.load(str(write_mlp(tmp_path / "plain.onnx")))
    (tmp_path / "split").mkdir()
    source = tmp_path / "split" / "model.onnx"
    onnx.save(model, str(source), save_as_external_data=True, location="weights.bin", size_threshold=0)
    conversion = convert_to_onnx(source, None, out=tmp_path / "out.onnx", progress=silent)
    assert (conversion.exporter, conversion.worst_difference) == ("as-is", 0.0)
    (tmp_path / "split" / "weights.bin").unlink()
    onnx.checker.check_model(onnx.load(str(tmp_path / "out.onnx")))


def outside(source: Path, data: Path) -> str:
    return "../weights.bin"


def absolute(source: Path, data: Path) -> str:
    return str(data)


def through_a_link(source: Path, data: Path) -> str:
    (source.parent / "link.bin").symlink_to(data)
    return "link.bin"


@pytest.mark.parametrize("place", [outside, absolute, through_a_link])
def test_external_data_outside_of_the_folder_is_refused(place: Callable[[Path, Path], str], tmp_path: Path) -> None:
    model = onnx.load(str(write_mlp(tmp_path / "plain.onnx")))
    (tmp_path / "models").mkdir()
    source = tmp_path / "models" / "model.onnx"
    onnx.save(model, str(source), save_as_external_data=True, location="weights.bin", size_threshold=0)
    secret = (source.parent / "weights.bin").rename(tmp_path / "weights.bin")
    hostile = onnx.load(str(source), load_external_data=False)
    location = place(source, secret)
    for tensor in hostile.graph.initializer:
        tensor.external_data[0].value = location
    source.write_bytes(hostile.SerializeToString())
    with pytest.raises(InvalidModel, match="is not a plain file in the model's folder"):
        convert_to_onnx(source, None, out=tmp_path / "out.onnx", progress=silent)


def test_an_operator_of_a_strange_library_is_refused(tmp_path: Path) -> None:
    model = onnx.load(str(write_mlp(tmp_path / "mlp.onnx")))
    model.graph.node[0].domain = "evil.corp"
    model.opset_import.append(helper.make_opsetid("evil.corp", 1))
    (tmp_path / "mlp.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InvalidModel, match=r"it uses operators of the domain 'evil\.corp'"):
        convert_to_onnx(tmp_path / "mlp.onnx", None, out=tmp_path / "out.onnx", progress=silent)


# --- weights


class Payload:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_a_pickle_is_refused_whatever_its_name(name: str, tmp_path: Path) -> None:
    torch.save(sources.tokens().state_dict(), tmp_path / name)
    source = TorchSource(reference=f"{SOURCES}:tokens", weights=str(tmp_path / name))
    with pytest.raises(UntrustedPickle, match="pass --trust-pickle if you made this file yourself"):
        convert_to_onnx(source, FOUR, out=tmp_path / "m.onnx", progress=silent)


@pytest.mark.parametrize("is_trusted", [False, True])
def test_a_malicious_pickle_never_runs(is_trusted: bool, tmp_path: Path) -> None:
    torch.save({"table.weight": Payload(tmp_path / "pwned")}, tmp_path / "weights.pt")
    with (
        pytest.raises((UntrustedPickle, InvalidModel)),
        plain_weights(str(tmp_path / "weights.pt"), trust_pickle=is_trusted) as weights,
    ):
        source = TorchSource(reference=f"{SOURCES}:tokens", weights=weights)
        convert_to_onnx(source, FOUR, out=tmp_path / "m.onnx", progress=silent)
    assert not (tmp_path / "pwned").exists()


def test_a_trusted_pickle_of_tensors_is_converted_and_its_plain_copy_is_gone_afterwards(tmp_path: Path) -> None:
    torch.save({"state_dict": sources.tokens().state_dict()}, tmp_path / "weights.pt")
    ids = samples(ids=np.ones((4, 3), np.int64))
    with plain_weights(str(tmp_path / "weights.pt"), trust_pickle=True) as weights:
        source = TorchSource(reference=f"{SOURCES}:tokens", weights=weights)
        conversion = convert_to_onnx(source, ids, out=tmp_path / "m.onnx", progress=silent)
    assert conversion.worst_difference < 1e-6
    assert not Path(weights).exists()


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    source = TorchSource(reference=f"{SOURCES}:tokens", weights=str(tmp_path / "none.safetensors"))
    with pytest.raises(SourceNotFound, match=r"expected a \.safetensors file"):
        convert_to_onnx(source, FOUR, out=tmp_path / "m.onnx", progress=silent)
