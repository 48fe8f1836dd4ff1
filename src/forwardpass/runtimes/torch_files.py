"""PyTorch's two kinds of program files: `torch.export` (`.pt2`) and, legacy, TorchScript.

Both are programs, not just weights: load only those whose origin you trust.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from forwardpass.core.tensors import BATCH_AXIS, Dimension, Signature, TensorSpec
from forwardpass.errors import InvalidModel, MissingExtra, SourceNotFound
from forwardpass.runtimes.options import RuntimeOptions
from forwardpass.runtimes.signatures import SIGNATURE_ENTRY, decode_signature
from forwardpass.runtimes.torch import TorchRuntime

import torch  # isort: skip  (after the module that turns its absence into a sentence)

__all__ = ["ExportedRuntime", "TorchScriptRuntime", "load_program", "load_script"]


_OPERATORS = {
    b"torch.ops.torchao.": "torchao.quantization",
    b"torch.ops.quantized_decomposed.": "torch.ao.quantization.fx._decomposed",
}
"""What a program's file says where it uses operators that a module has to register."""


class ExportedRuntime(TorchRuntime):
    """A `torch.export` program; what it does not say of its outputs is read off its graph."""

    name = "torch.export"

    def __init__(self, path: str, *, options: RuntimeOptions) -> None:
        torch.set_num_threads(options.num_threads)
        program, signature = load_program(path)
        module: Any = program.module()
        # Calls are held against the signature before they come here; torch would check them again, in 0.1 ms.
        module.validate_inputs = False
        self.module = module
        self._signature = signature or _declared(program, path)


class TorchScriptRuntime(TorchRuntime):
    """A TorchScript file. One that forwardpass did not write has no signature before it ran."""

    name = "torchscript"

    def __init__(self, path: str, *, options: RuntimeOptions) -> None:
        torch.set_num_threads(options.num_threads)
        self.module, self._signature = load_script(path)


def load_program(path: str) -> tuple[torch.export.ExportedProgram, Signature | None]:
    """Load a `torch.export` file, with the signature that forwardpass wrote into it.

    Raises:
        SourceNotFound: there is no such file.
        InvalidModel: it is not one.
        MissingExtra: it uses operators of torchao's, which is not installed.
    """
    extra = {SIGNATURE_ENTRY: ""}
    with _loading(path, "a torch.export file (.pt2)"):
        _import_operators(path)
        program = torch.export.load(path, extra_files=extra)
    return program, decode_signature(extra[SIGNATURE_ENTRY])


def load_script(path: str) -> tuple[Any, Signature | None]:
    """Load a TorchScript file, with the signature that forwardpass wrote into it.

    Raises:
        SourceNotFound: there is no such file.
        InvalidModel: it is not one.
    """
    extra: dict[str, Any] = {SIGNATURE_ENTRY: ""}
    with _loading(path, "a TorchScript file"):
        module = torch.jit.load(path, map_location="cpu", _extra_files=extra).eval()  # type: ignore[no-untyped-call]
    return module, decode_signature(extra[SIGNATURE_ENTRY])


def _import_operators(path: str) -> None:
    """Register the operators of quantised programs, which live in modules that torch does not import by itself."""
    with zipfile.ZipFile(path) as archive:
        graphs = [name for name in archive.namelist() if name.endswith("/models/model.json")]
        text = b"".join(archive.read(name) for name in graphs)
    for marker, module in _OPERATORS.items():
        if marker in text:
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise MissingExtra(package="torchao", extra="torchao", purpose="running this program") from error


@contextlib.contextmanager
def _loading(path: str, expected: str) -> Iterator[None]:
    if not Path(path).is_file():
        raise SourceNotFound(path=path, expected=expected)
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # torch logs, with a traceback, what it then raises
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except MissingExtra:
        raise
    except Exception as error:  # zip, JSON, C++: they share no base but this one
        line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InvalidModel(path=path, reason=f"it is not {expected} that this torch can load ({line[:200]})") from error
    finally:
        logging.disable(disabled)


def _declared(program: torch.export.ExportedProgram, path: str) -> Signature:
    """Read the signature off a program: symbols are dynamic axes; the one that all inputs begin with is the batch."""
    names = program.graph_signature
    values: dict[str, Any] = {node.name: node.meta.get("val") for node in program.graph.nodes}
    inputs = {name: values[name] for name in map(str, names.user_inputs)}
    outputs: dict[str, Any] = {name: values.get(name) for name in map(str, names.user_outputs)}
    if not all(isinstance(value, torch.Tensor) for value in (*inputs.values(), *outputs.values())):
        raise InvalidModel(path=path, reason="it takes or returns something else than tensors")
    first = {str(value.shape[0]) if value.ndim else "" for value in inputs.values()}
    batch = first.pop() if len(first) == 1 else ""
    return Signature(
        inputs=tuple(_spec(name, value, batch) for name, value in inputs.items()),
        outputs=tuple(
            _spec(name, value, batch)
            for name, value in zip(_output_names(program, len(outputs)), outputs.values(), strict=True)
        ),
    )


def _output_names(program: torch.export.ExportedProgram, num_outputs: int) -> list[str]:
    """Name outputs as running the program names them."""
    spec = program.call_spec.out_spec
    if spec is not None and spec.type is dict:
        return [str(key) for key in spec.context]
    if spec is None or spec.is_leaf():
        return ["output"]
    return [f"output_{index}" for index in range(num_outputs)]


def _spec(name: str, value: torch.Tensor, batch: str) -> TensorSpec:
    sizes = [str(size) for size in value.shape]  # a number, or the symbol of a dynamic axis
    shape: list[Dimension] = [int(size) if size.isdigit() else BATCH_AXIS if size == batch else size for size in sizes]
    return TensorSpec(name=name, dtype=str(value.dtype).removeprefix("torch."), shape=tuple(shape))
