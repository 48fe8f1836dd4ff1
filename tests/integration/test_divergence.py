"""The first node that differs: found in a file that was tampered with at a known place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from forwardpass.convert import convert, ir, litert
from forwardpass.convert.divergence import diverging_node
from forwardpass.convert.exporters import export
from forwardpass.convert.locating import diverging_onnx_node
from forwardpass.core.samples import SampleGroup, Samples
from forwardpass.core.tensors import Array
from forwardpass.core.variants import Format
from forwardpass.errors import ParityFailed
from tests.integration import conversion_sources as sources

CALL = {"ids": np.array([[1, 2, 3], [4, 5, 6]])}


def test_the_layer_with_other_weights_is_named_with_its_line(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "model.onnx"
    call = {"x": np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)}
    axes = {"x": {0: "batch"}}
    program = export(sources.TwoLayers().eval(), call, axes, exporter="dynamo", out=path, opset=None, name="two")
    assert diverging_node(program, path, call, tolerance=1e-4) == ""
    model = onnx.load(str(path))
    (weights,) = (tensor for tensor in model.graph.initializer if tensor.name == "second.weight")
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) + 1, weights.name))
    onnx.save(model, str(path))
    told = diverging_node(program, path, call, tolerance=1e-4)
    line = 1 + Path(sources.__file__).read_text().splitlines().index("        return torch.relu(self.second(hidden))")
    assert told.endswith(f"(Gemm, {Path(sources.__file__).name}:{line})")


def test_a_program_with_several_outputs_can_be_walked(tmp_path: Path) -> None:
    path = tmp_path / "tokens.onnx"
    axes = {"ids": {0: "batch", 1: "sequence"}}
    program = export(sources.tokens().eval(), CALL, axes, exporter="dynamo", out=path, opset=None, name="tokens")
    assert diverging_node(program, path, CALL, tolerance=1e-4) == ""


# --- forms that are made from ONNX ---------------------------------------------------------------------------------


class Images(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 8, 3)
        self.second = torch.nn.Conv2d(8, 6, 3)
        self.last = torch.nn.Linear(6, 4)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        seen = torch.relu(self.second(torch.relu(self.first(pixels))))
        return self.last(seen.mean((2, 3)))


HERE = Path(__file__).name
SECOND = 1 + Path(__file__).read_text().splitlines().index(
    "        seen = torch.relu(self.second(torch.relu(self.first(pixels))))"
)


def silent(text: str, *, done: float) -> None:
    assert 0 <= done <= 1


def image_samples() -> Samples:
    pixels = np.random.default_rng(0).standard_normal((20, 3, 9, 9)).astype(np.float32)
    return Samples(groups=(SampleGroup(inputs={"pixels": pixels}),))


def broken(path: Path, weights: Array) -> None:
    """Change weights in place, wherever in the file they are."""
    content = path.read_bytes()
    assert content.count(weights.tobytes()) == 1
    path.write_bytes(content.replace(weights.tobytes(), (weights * np.float32(1.5)).tobytes()))


def test_the_node_that_openvino_computes_otherwise_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Images()
    writing = ir.save_ir

    def save_broken(source: Path, out: Path, *rest: Any, **named: Any) -> None:
        writing(source, out, *rest, **named)
        broken(out.with_suffix(".bin"), model.second.weight.detach().numpy())

    monkeypatch.setattr(ir, "save_ir", save_broken)
    with pytest.raises(ParityFailed, match=r"The first node that differs is '\w+' \(Conv, \w+\.py:\d+\)\.") as caught:
        convert(model, image_samples(), to=Format.OPENVINO, out=tmp_path / "model.xml", progress=silent)
    assert caught.value.node == f"'node_conv2d_1' (Conv, {HERE}:{SECOND})"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_node_that_litert_computes_otherwise_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Images()
    writing = litert.save_litert

    def save_broken(source: Path, out: Path, *rest: Any, **named: Any) -> None:
        writing(source, out, *rest, **named)
        broken(out, np.ascontiguousarray(model.second.weight.detach().numpy().transpose(0, 2, 3, 1)))

    monkeypatch.setattr(litert, "save_litert", save_broken)
    with pytest.raises(ParityFailed) as caught:
        convert(model, image_samples(), to=Format.LITERT, out=tmp_path / "model.tflite", progress=silent)
    assert caught.value.node == f"'node_conv2d_1' (Conv, {HERE}:{SECOND})"


def test_a_rewritten_onnx_file_is_compared_by_the_names_of_its_values(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.onnx", tmp_path / "bad.onnx"
    conversion = convert(Images(), image_samples(), to=Format.ONNX, out=good, progress=silent)
    assert conversion.worst_difference < 1e-5
    model = onnx.load(str(good))
    call = {"pixels": image_samples().groups[0].inputs["pixels"][:2]}
    assert diverging_onnx_node(good, good, Format.ONNX, call, tolerance=1e-4) == ""
    next(node for node in model.graph.node if node.op_type == "ReduceMean").op_type = "ReduceMax"
    onnx.save(model, str(bad))
    told = diverging_onnx_node(good, bad, Format.ONNX, call, tolerance=1e-4)
    assert told == f"'node_mean' (ReduceMean, {HERE}:{SECOND + 1})"
