"""Conversion: proved at every shape or refused, with the place named, and nothing half-written left."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from forwardpass.convert import Conversion, TorchSource, convert_to_onnx, exporters, plain_weights
from forwardpass.core.metrics import METRICS
from forwardpass.core.samples import SampleGroup, Samples
from forwardpass.core.tensors import Array
from forwardpass.core.variants import Format, Precision, Variant
from forwardpass.errors import (
    ConversionError,
    DataDependentControlFlow,
    ExportFailed,
    InvalidMetric,
    InvalidModel,
    InvalidOption,
    InvalidSamples,
    OpsetUnavailable,
    ParityFailed,
    SourceNotFound,
    StorageFailed,
    UnsteadySource,
    UnsupportedOperator,
    UntrustedPickle,
)
from forwardpass.optimize.evaluation import answer, score_answers
from forwardpass.runtimes import RuntimeOptions
from forwardpass.runtimes.torch import TorchRuntime
from tests.integration import conversion_sources as sources
from tests.models import write_fixed_batch, write_mlp

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
        (
            sources.Unsupported(),
            UnsupportedOperator,
            "Cannot convert the operator 'aten.linalg_eig' (conversion_sources.py:30)",
        ),
        (sources.OneRow(), ExportFailed, "its batch is frozen at 1: forward() raised RuntimeError at conversion_sou"),
        (
            sources.SixteenRows(),
            ExportFailed,
            "its batch is frozen at 16: forward() raised RuntimeError at ",
        ),
        (sources.CountingInABuffer(), UnsteadySource, "since forward() changes 'count' in place. Make it an input"),
        (sources.Drawing(), UnsteadySource, "differs by"),
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


def test_shapes_that_depend_on_values_are_noted_and_rows_no_longer_counted(tmp_path: Path) -> None:
    conversion = convert_to_onnx(sources.Selecting(), FOUR, out=tmp_path / "m.onnx", progress=silent)
    assert [note for note in conversion.notes if "output 'output' depends on the values of the inputs" in note]
    assert not conversion.signature.is_batchable
    runtime = TorchRuntime(sources.Selecting(), options=RuntimeOptions())
    runtime.run({"x": np.ones((2, 4), np.float32)})
    assert runtime.signature.is_batchable
    runtime.run({"x": -np.ones((2, 4), np.float32)})
    assert not runtime.signature.is_batchable


def test_outputs_without_a_row_for_each_sample_are_not_scored() -> None:
    variant = Variant(name="source", format=Format.TORCH, precision=Precision.FP32, location=f"{SOURCES}:selecting")
    answers = answer(variant, FOUR)
    with pytest.raises(InvalidMetric, match=r"\[\d+, 4\] for 20 samples: none of its rows belongs to one of them\."):
        score_answers(METRICS["cosine"], answers, answers, FOUR)


def test_a_module_that_changes_its_input_in_place_changes_nobody_elses(tmp_path: Path) -> None:
    kept = FOUR.groups[0].inputs["x"].copy()
    conversion = convert_to_onnx(sources.DoublingItsInput(), FOUR, out=tmp_path / "m.onnx", progress=silent)
    assert conversion.worst_difference < 1e-6
    assert np.array_equal(FOUR.groups[0].inputs["x"], kept)


def test_samples_have_to_be_named_after_the_arguments(tmp_path: Path) -> None:
    with pytest.raises(InvalidSamples, match=r"they have an array 'x', but forward\(\) takes ids"):
        convert_to_onnx(sources.tokens(), FOUR, out=tmp_path / "m.onnx", progress=silent)
    wide = samples(ids=np.ones((4, 3), np.float64))
    with pytest.raises(
        InvalidSamples, match=r"forward\(\) raised RuntimeError at conversion_sources\.py:46 for ids float64\[2, 3\]"
    ):
        convert_to_onnx(sources.tokens(), wide, out=tmp_path / "m.onnx", progress=silent)
    with pytest.raises(InvalidSamples, match="cannot be traced without inputs"):
        convert_to_onnx(sources.tokens(), None, out=tmp_path / "m.onnx", progress=silent)


# --- opsets


def opset_in(path: Path) -> int:
    return next(entry.version for entry in onnx.load(str(path)).opset_import if not entry.domain)


@pytest.mark.parametrize("opset", [9, 11, 13, 16, 17, 18, 20, 21])
@pytest.mark.parametrize("module", [sources.Convolved(), sources.Normed()], ids=["convolved", "normed"])
def test_the_opset_is_the_one_that_was_asked_for(module: torch.nn.Module, opset: int, tmp_path: Path) -> None:
    conversion = convert_to_onnx(module, FOUR, out=tmp_path / "m.onnx", opset=opset, progress=silent)
    assert (conversion.opset, opset_in(tmp_path / "m.onnx")) == (opset, opset)
    assert conversion.worst_difference < 1e-5


@pytest.mark.parametrize("opset", [11, 13, 17, 18, 21])
def test_an_onnx_file_is_rewritten_in_the_opset_that_was_asked_for(opset: int, tmp_path: Path) -> None:
    source = write_mlp(tmp_path / "mlp.onnx")
    conversion = convert_to_onnx(source, None, out=tmp_path / "m.onnx", opset=opset, progress=silent)
    assert (conversion.opset, opset_in(tmp_path / "m.onnx")) == (opset, opset)


def test_an_opset_without_one_of_the_operators_is_refused_with_its_name(tmp_path: Path) -> None:
    convert_to_onnx(sources.Normed(), FOUR, out=tmp_path / "normed.onnx", opset=17, progress=silent)
    with pytest.raises(OpsetUnavailable) as caught:
        convert_to_onnx(tmp_path / "normed.onnx", FOUR, out=tmp_path / "m.onnx", opset=16, progress=silent)
    assert str(caught.value) == (
        f"Cannot write '{tmp_path}/normed.onnx' in opset 16 (it is in opset 17): the operator 'LayerNormalization' "
        "exists since opset 17. Re-run with --opset 17 or newer."
    )
    assert [path.name for path in tmp_path.iterdir()] == ["normed.onnx"]


@pytest.mark.parametrize("kind", ["module", "file"])
def test_an_opset_of_the_future_is_refused_with_the_newest_that_is_known(kind: str, tmp_path: Path) -> None:
    source = sources.Convolved() if kind == "module" else write_mlp(tmp_path / "mlp.onnx")
    samples_of_it = FOUR if kind == "module" else None
    newest = f"expected 7 to {onnx.defs.onnx_opset_version()}, which the installed onnx {onnx.__version__} knows"
    with pytest.raises(InvalidOption, match=rf"Invalid value '99' for --opset: {newest}"):
        convert_to_onnx(source, samples_of_it, out=tmp_path / "m.onnx", opset=99, progress=silent)


# --- axes

FIVE_STEPS = samples(x=np.random.default_rng(1).standard_normal((6, 5, 4)).astype(np.float32))


def test_a_named_axis_is_run_at_other_sizes_and_the_outputs_that_follow_it_say_so(tmp_path: Path) -> None:
    conversion = convert_to_onnx(
        sources.Recurrent(), FIVE_STEPS, out=tmp_path / "m.onnx", axes={"x": {1: "length"}}, progress=silent
    )
    assert {check.shapes for check in conversion.parity} >= {"x [2, 6, 4]", "x [2, 10, 4]"}
    shapes = {spec.name: spec.shape for spec in conversion.signature.outputs}
    assert shapes == {
        "states": ("batch", "length", 3),
        "last": ("batch", 3),
        "doubled": ("batch", "doubled_axis1", 3),
    }
    written = onnx.load(str(tmp_path / "m.onnx"))
    onnx.checker.check_model(written, full_check=True)
    states = next(value for value in written.graph.output if value.name == "states")
    assert states.type.tensor_type.shape.dim[1].dim_param == "length"


def test_a_named_axis_that_the_result_has_frozen_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporters, "EXPORTERS", ("legacy",))  # the one that takes a size for a constant
    with pytest.raises(ParityFailed, match=r"for inputs x \[2, 5\]"):
        convert_to_onnx(sources.BakedWidth(), FOUR, out=tmp_path / "m.onnx", axes={"x": {1: "width"}}, progress=silent)
    assert list(tmp_path.iterdir()) == []


def test_a_named_axis_at_which_the_source_runs_at_one_size_only_is_not_dynamic(tmp_path: Path) -> None:
    with pytest.raises(ConversionError):
        convert_to_onnx(sources.OneWidth(), FOUR, out=tmp_path / "m.onnx", axes={"x": {1: "width"}}, progress=silent)


def test_an_axis_that_no_input_has_is_a_mistake(tmp_path: Path) -> None:
    for axes in ({"y": {1: "width"}}, {"x": {2: "width"}}, {"x": {0: "rows"}}):
        with pytest.raises(InvalidOption, match="expected an axis behind the batch"):
            convert_to_onnx(sources.OneWidth(), FOUR, out=tmp_path / "m.onnx", axes=axes, progress=silent)


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


def with_hidden_operator(inner: onnx.NodeProto) -> onnx.ModelProto:
    """Return a model with `inner` in a branch of an If inside the body of a function."""
    constant = helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("t", onnx.TensorProto.BOOL, [], [1]))
    value = helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, None)
    branch = helper.make_graph([inner], "branch", [], [value])
    choose = helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)
    function = helper.make_function(
        "local", "choose", ["x"], ["y"], [constant, choose], [helper.make_opsetid("", 18)], []
    )
    shape: tuple[str | int, ...] = ("batch", 4)
    graph = helper.make_graph(
        [helper.make_node("choose", ["x"], ["z"], domain="local")],
        "calls",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, shape)],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1), helper.make_opsetid("evil.corp", 1)]
    return helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=10)


def test_local_functions_are_inlined(tmp_path: Path) -> None:
    onnx.save(with_hidden_operator(helper.make_node("Neg", ["x"], ["b"])), str(tmp_path / "f.onnx"))
    conversion = convert_to_onnx(tmp_path / "f.onnx", FOUR, out=tmp_path / "m.onnx", progress=silent)
    assert conversion.worst_difference == 0
    written = onnx.load(str(tmp_path / "m.onnx"))
    assert (len(written.functions), [node.op_type for node in written.graph.node]) == (0, ["Constant", "If"])


def test_an_operator_of_a_strange_library_is_found_inside_of_branches_and_functions(tmp_path: Path) -> None:
    hidden = helper.make_node("Steal", ["x"], ["b"], domain="evil.corp")
    onnx.save(with_hidden_operator(hidden), str(tmp_path / "f.onnx"))
    with pytest.raises(InvalidModel, match=r"it uses operators of the domain 'evil\.corp'"):
        convert_to_onnx(tmp_path / "f.onnx", FOUR, out=tmp_path / "m.onnx", progress=silent)


def test_a_function_that_calls_itself_is_refused(tmp_path: Path) -> None:
    model = with_hidden_operator(helper.make_node("choose", ["x"], ["b"], domain="local"))
    model.functions[0].opset_import.append(helper.make_opsetid("local", 1))
    onnx.save(model, str(tmp_path / "f.onnx"))
    with pytest.raises(InvalidModel, match="must not be recursive"):
        convert_to_onnx(tmp_path / "f.onnx", FOUR, out=tmp_path / "m.onnx", progress=silent)


def test_external_data_of_a_branch_is_checked_too(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    (tmp_path / "models").mkdir()
    outside = helper.make_tensor("w", onnx.TensorProto.FLOAT, [4], np.zeros(4, np.float32))
    outside.ClearField("float_data")
    outside.data_location = onnx.TensorProto.EXTERNAL
    outside.external_data.add(key="location", value="../secret.bin")
    model = with_hidden_operator(helper.make_node("Constant", [], ["b"], value=outside))
    (tmp_path / "models" / "f.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InvalidModel, match="is not a plain file in the model's folder"):
        convert_to_onnx(tmp_path / "models" / "f.onnx", FOUR, out=tmp_path / "m.onnx", progress=silent)


def test_a_file_that_is_not_there_is_called_that(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match="expected an ONNX file"):
        convert_to_onnx(tmp_path / "none.onnx", None, out=tmp_path / "m.onnx", progress=silent)


PIXELS = samples(pixels=np.random.default_rng(1).standard_normal((20, 4)).astype(np.float32))


@pytest.mark.parametrize("num_rows", [1, 4, 32])
@pytest.mark.parametrize("given", [PIXELS, None], ids=["samples", "made-up"])
def test_a_fixed_batch_becomes_dynamic_where_every_row_still_answers_the_same(
    num_rows: int, given: Samples | None, tmp_path: Path
) -> None:
    source = write_fixed_batch(tmp_path / "fixed.onnx", num_rows)
    conversion = convert_to_onnx(source, given, out=tmp_path / "m.onnx", progress=silent)
    assert conversion.signature.is_batchable
    assert [check.num_rows for check in conversion.parity] == [1, 2, 3, 5, 8]
    assert conversion.notes == (
        f"The batch was fixed at {num_rows}. It is dynamic now, and every row answers as it did.",
    )


def test_a_fixed_batch_whose_rows_see_each_other_stays(tmp_path: Path) -> None:
    source = write_fixed_batch(tmp_path / "fixed.onnx", 4, mixes_rows=True)
    conversion = convert_to_onnx(source, PIXELS, out=tmp_path / "m.onnx", progress=silent)
    assert not conversion.signature.is_batchable
    assert "The batch is fixed at 4" in conversion.notes[0]
    assert [check.num_rows for check in conversion.parity] == [4]


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


@pytest.mark.parametrize("opset", [None, 18])
def test_a_file_that_cannot_be_written_is_the_fault_of_the_disk_and_not_of_the_model(
    opset: int | None, tmp_path: Path
) -> None:
    source, out = write_mlp(tmp_path / "model.onnx"), tmp_path / "out" / "copy.onnx"
    limit, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, most))
    try:
        with pytest.raises(StorageFailed):
            convert_to_onnx(source, None, out=out, opset=opset, progress=silent)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    assert not any(out.parent.iterdir())
