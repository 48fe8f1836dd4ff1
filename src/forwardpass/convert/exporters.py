"""PyTorch's two exporters, with what they say put into one sentence."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from forwardpass.convert.axes import DynamicAxes
from forwardpass.core.tensors import Array
from forwardpass.errors import (
    ConversionError,
    DataDependentControlFlow,
    ExportFailed,
    MissingExtra,
    UnsupportedOperator,
)
from forwardpass.runtimes.torch import named_outputs

__all__ = ["EXPORTERS", "export", "exporters_for", "quiet", "translated", "user_line"]

EXPORTERS = ("dynamo", "legacy")
"""In the order of trying. The legacy one bakes sizes in more often, but knows a few operators more."""

_UNSUPPORTED = (
    re.compile(r"No ONNX function found for <OpOverload\(op='(?P<operator>[\w.:]+)'"),
    re.compile(r"Exporting the operator '?(?P<operator>[\w:.]+)'? to ONNX"),
    re.compile(r"No decompositions registered for the complex-valued input.*?(?P<operator>aten[\w.:]+)", re.DOTALL),
)
_DATA_DEPENDENT = re.compile(r"data-dependent|Dynamic control flow|cond\(|could not extract specialized", re.IGNORECASE)
_USER_LINE = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\w+)')
_GRAPH_LINE = r"{operator}\([^\n]*# (?P<file>[^\n]+?):(?P<line>\d+):\d+"
"""How the older exporter's graph says where an operator comes from."""
_LIBRARY = re.compile(r"/(torch|onnxscript|onnx_ir)/|<eval_with_key>|<frozen")


def exporters_for(module: nn.Module) -> tuple[str, ...]:
    """Return what to try with a module: TorchScript is refused by the newer one, whatever is in it."""
    return ("legacy",) if isinstance(module, torch.jit.ScriptModule) else EXPORTERS


def export(
    module: nn.Module,
    example: Mapping[str, Array],
    axes: DynamicAxes,
    *,
    exporter: str,
    out: Path,
    opset: int | None,
    name: str,
) -> Any:
    """Write `module` to `out` as one ONNX file, and return the `torch.export` program that it was made from, if any.

    Raises:
        UnsupportedOperator: ONNX has no translation for an operator.
        ExportFailed: the module cannot be traced.
        MissingExtra: the exporter's packages are not installed.
    """
    inputs = {tensor: torch.from_numpy(array) for tensor, array in example.items()}
    with torch.inference_mode():
        returned = module(**inputs)
        outputs = tuple(named_outputs(returned))
    arguments: dict[str, Any] = {
        "kwargs": inputs,
        "input_names": list(inputs),
        "output_names": list(outputs),
        "opset_version": opset,
        "verbose": False,
    }
    if exporter == "dynamo":
        shapes = {tensor: dict(names) for tensor, names in axes.items()}
        arguments |= {"dynamo": True, "dynamic_shapes": shapes, "external_data": False, "optimize": True}
    else:
        first = {output: {0: "batch"} for output in outputs}
        arguments |= {"dynamo": False, "dynamic_axes": {**{t: dict(n) for t, n in axes.items()}, **first}}
    try:
        with quiet():
            if isinstance(module, torch.jit.ScriptModule) and isinstance(returned, Mapping) and exporter != "dynamo":
                jit: Any = torch.jit
                module = jit.trace(_InATuple(module, tuple(inputs)), tuple(inputs.values()), check_trace=False)
                written = torch.onnx.export(module, tuple(inputs.values()), str(out), **arguments | {"kwargs": None})
            else:
                written = torch.onnx.export(module, (), str(out), **arguments)
    except ModuleNotFoundError as error:
        raise MissingExtra(package=error.name or "onnxscript", extra="torch", purpose="exporting to ONNX") from error
    except Exception as error:  # the exporters raise what lies deep below them
        raise translated(error, name) from error
    return getattr(written, "exported_program", None)


class _InATuple(nn.Module):
    """TorchScript whose outputs are a mapping, for which the older exporter has no translation."""

    def __init__(self, script: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.script = script
        self.names = names

    def forward(self, *arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.script(**dict(zip(self.names, arguments, strict=True))).values())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's prints, warnings and log lines to itself; its errors still come through.

    The older exporter prints whole graphs from C++, past `sys.stdout`: so the descriptor itself leads elsewhere.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    sys.stdout.flush()
    stdout = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
        os.close(nowhere)
        logging.disable(disabled)


def translated(error: Exception, name: str) -> ConversionError:
    """Put what an exporter raised into one sentence: the operator, or the line of the user's code."""
    text = "\n".join(str(link) for link in _chain(error))
    where = user_line(error, text)
    for pattern in _UNSUPPORTED:
        match = pattern.search(text)
        if match:
            location = where or _operator_line(error, text, match["operator"])
            return UnsupportedOperator(operator=match["operator"].replace("::", "."), location=location)
    at = f" at {where}" if where else ""
    if _DATA_DEPENDENT.search(text):
        return DataDependentControlFlow(source=name, location=where)
    cause = list(_chain(error))[-1]
    first_line = next((line.strip() for line in str(cause).splitlines() if line.strip()), "no message")
    return ExportFailed(source=name, reason=f"tracing it raised {type(cause).__name__}{at}: {first_line[:300]}")


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def user_line(error: Exception, text: str = "") -> str:
    """Return the last line of the user's own code in the trace, as `file.py:12`."""
    for link in _chain(error):
        trace = link.__traceback__
        lines = []
        while trace is not None:
            file = trace.tb_frame.f_code.co_filename
            if not _LIBRARY.search(file) and "/forwardpass/" not in file and not file.endswith("contextlib.py"):
                lines.append(f"{Path(file).name}:{trace.tb_lineno}")
            trace = trace.tb_next
        if lines:
            return lines[-1]
    found = [match for match in _USER_LINE.finditer(text) if not _LIBRARY.search(match["file"])]
    return f"{Path(found[-1]['file']).name}:{found[-1]['line']}" if found else ""


def _operator_line(error: Exception, text: str, operator: str) -> str:
    """Return the line of the user's code that an operator comes from, as `file.py:12`.

    Neither exporter says it in its error: the newer one holds the node of its program while it fails, the older one
    prints its graph.
    """
    traces = "\n".join(_traces_of_nodes(error))
    lines = [match for match in _USER_LINE.finditer(traces) if not _LIBRARY.search(match["file"])]
    lines += re.finditer(_GRAPH_LINE.format(operator=re.escape(operator)), text)
    return f"{Path(lines[0]['file']).name}:{lines[0]['line']}" if lines else ""


def _traces_of_nodes(error: Exception) -> Iterator[str]:
    """Yield where each node was written whose translation failed, the innermost call of a trace first."""
    for link in _chain(error):
        trace = link.__traceback__
        while trace is not None:
            node = trace.tb_frame.f_locals.get("node")
            if isinstance(node, torch.fx.Node):
                yield "\n".join(reversed(str(node.meta.get("stack_trace", "")).splitlines()))
            trace = trace.tb_next
