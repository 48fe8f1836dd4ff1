"""The first node that differs: found in a file that was tampered with at a known place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from forwardpass.convert.divergence import diverging_node
from forwardpass.convert.exporters import export
from tests.integration import conversion_sources as sources

CALL = {"ids": np.array([[1, 2, 3], [4, 5, 6]])}


class TwoLayers(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(4, 4)
        self.second = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(x))
        return torch.relu(self.second(hidden))


def test_the_layer_with_other_weights_is_named_with_its_line(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "model.onnx"
    call = {"x": np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)}
    axes = {"x": {0: "batch"}}
    program = export(TwoLayers().eval(), call, axes, exporter="dynamo", out=path, opset=None, name="two")
    assert diverging_node(program, path, call, tolerance=1e-4) == ""
    model = onnx.load(str(path))
    (weights,) = (tensor for tensor in model.graph.initializer if tensor.name == "second.weight")
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) + 1, weights.name))
    onnx.save(model, str(path))
    told = diverging_node(program, path, call, tolerance=1e-4)
    line = 1 + Path(__file__).read_text().splitlines().index("        return torch.relu(self.second(hidden))")
    assert told.endswith(f"(Gemm, {Path(__file__).name}:{line})")


def test_a_program_with_several_outputs_can_be_walked(tmp_path: Path) -> None:
    path = tmp_path / "tokens.onnx"
    axes = {"ids": {0: "batch", 1: "sequence"}}
    program = export(sources.tokens().eval(), CALL, axes, exporter="dynamo", out=path, opset=None, name="tokens")
    assert diverging_node(program, path, CALL, tolerance=1e-4) == ""
