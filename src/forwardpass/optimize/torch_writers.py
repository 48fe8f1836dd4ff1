"""Writers of PyTorch's own variants: a module in, a `torch.export` program out, in float or quantised by torchao."""

from __future__ import annotations

import copy
import importlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from forwardpass.convert.axes import DynamicAxes, dynamic_axes
from forwardpass.convert.compiling import save_compiled
from forwardpass.convert.exporters import quiet
from forwardpass.convert.torch_forms import check_axes, save_program, traced_program
from forwardpass.convert.torch_sources import example_call
from forwardpass.core.samples import Samples
from forwardpass.core.tensors import Array, Signature
from forwardpass.errors import MissingExtra, NothingToQuantise
from forwardpass.runtimes.torch import load_module
from forwardpass.runtimes.torch_files import load_program

__all__ = [
    "TorchModel",
    "write_compiled",
    "write_float_program",
    "write_int8_dynamic_program",
    "write_int8_static_program",
    "write_int8_weights_program",
]

MAX_CALIBRATION_ROWS = 32
_LINEAR, _STATIC = ("nn.Linear",), ("nn.Linear", "nn.Conv")


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchModel:
    """A module as it is written down: where it comes from, what it takes, and a name for errors."""

    reference: str
    weights: str
    calibration: Samples
    axes: Mapping[str, Mapping[int, str]]
    """Of axes that the user has named, by input and axis."""
    signature: Signature

    def load(self) -> nn.Module:
        """Return the module anew, in evaluation mode."""
        return load_module(self.reference, weights=self.weights)

    @property
    def example(self) -> dict[str, Array]:
        """One call."""
        return example_call(self.calibration)

    @property
    def dynamic(self) -> DynamicAxes:
        """The dynamic axes of all inputs."""
        return dynamic_axes(self.calibration, self.axes)


def write_float_program(model: TorchModel, target: Path) -> None:
    """Write the module as it is."""
    _save(model, model.load(), target)


def write_int8_dynamic_program(model: TorchModel, target: Path) -> None:
    """Quantise linear layers: weights with a scale per channel, activations call by call with a scale per row.

    Raises:
        NothingToQuantise: there is no linear layer.
    """
    quantization = _torchao("torchao.quantization")
    _write_linear(model, quantization, quantization.Int8DynamicActivationInt8WeightConfig(), target)


def write_int8_weights_program(model: TorchModel, target: Path) -> None:
    """Keep the weights of linear layers in 8 bits, with a scale per channel, and compute in float.

    Raises:
        NothingToQuantise: there is no linear layer.
    """
    quantization = _torchao("torchao.quantization")
    _write_linear(model, quantization, quantization.Int8WeightOnlyConfig(), target)


def write_int8_static_program(model: TorchModel, target: Path) -> int:
    """Quantise linear layers and convolutions for Inductor's kernels on x86, with ranges from the samples.

    Returns the number of tensors that have a fixed range.

    Raises:
        NothingToQuantise: there is neither.
    """
    quantize = _torchao("torchao.quantization.pt2e.quantize_pt2e")
    x86 = _torchao("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    module = model.load()
    if not any(isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) for part in module.modules()):
        raise NothingToQuantise(operators=_STATIC)
    name = model.reference
    with _quiet_torchao(), torch.no_grad():
        quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
        program = traced_program(module, model.example, model.dynamic, name=name)
        prepared = quantize.prepare_pt2e(program.module(), quantizer)
        for group in model.calibration.batches(MAX_CALIBRATION_ROWS):
            prepared(**{tensor: torch.tensor(array) for tensor, array in group.inputs.items()})
        converted = quantize.convert_pt2e(prepared)
        _drop_unused(converted)
    num_ranges = sum("quantize_per_tensor" in str(node.target) for node in converted.graph.nodes)
    _save(model, converted, target)
    return num_ranges


def write_compiled(model: TorchModel, program: Path, target: Path, *, cache: Path) -> None:
    """Compile a program that was written before.

    Raises:
        MissingCompiler: there is no C++ compiler.
        ExportFailed: Inductor cannot compile it.
    """
    save_compiled(
        load_program(str(program))[0], model.example, target, model.signature, name=model.reference, cache=cache
    )


def _write_linear(model: TorchModel, quantization: Any, configuration: object, target: Path) -> None:
    module = copy.deepcopy(model.load())
    if not any(isinstance(part, nn.Linear) for part in module.modules()):
        raise NothingToQuantise(operators=_LINEAR)
    with _quiet_torchao(), torch.no_grad():
        quantization.quantize_(module, configuration)
        # As classes of torchao's, weights would be pickled into the file.
        _torchao("torchao.utils").unwrap_tensor_subclass(module)
    _save(model, module, target)


def _save(model: TorchModel, module: nn.Module, target: Path) -> None:
    with _quiet_torchao():
        program = traced_program(module, model.example, model.dynamic, name=model.reference)
        check_axes(program, model.dynamic, name=model.reference)
        save_program(program, target, model.signature)


def _drop_unused(module: torch.fx.GraphModule) -> None:
    """Remove the weights in float that quantisation has left behind; they would be most of the file."""
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for name, _ in [*module.named_parameters(), *module.named_buffers()]:
        if name not in used:
            holder, _, last = name.rpartition(".")
            delattr(module.get_submodule(holder), last)


def _torchao(module: str) -> Any:
    try:
        with _quiet_torchao():
            return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(package="torchao", extra="torchao", purpose="quantising a PyTorch module") from error


@contextmanager
def _quiet_torchao() -> Iterator[None]:
    """Keep what torchao says of kernels for other processors, and of its own future, out of the way."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
