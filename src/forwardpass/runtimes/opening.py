"""Picks the runtime for a variant's format, and imports its library only then."""

from __future__ import annotations

from importlib import import_module
from typing import Protocol

from forwardpass.core.protocols import Runtime
from forwardpass.core.variants import Format
from forwardpass.runtimes.options import RuntimeOptions

__all__ = ["import_runtime", "open_runtime", "runtime_versions"]

_RUNTIMES = {
    Format.ONNX: ("onnx", "OnnxRuntime"),
    Format.ORT: ("onnx", "OnnxRuntime"),
    Format.TORCHSCRIPT: ("torch_files", "TorchScriptRuntime"),
    Format.PT2: ("torch_files", "ExportedRuntime"),
    Format.AOTINDUCTOR: ("compiled", "CompiledRuntime"),
    Format.OPENVINO: ("openvino", "OpenvinoRuntime"),
    Format.LITERT: ("litert", "LitertRuntime"),
    Format.EXECUTORCH: ("executorch", "ExecutorchRuntime"),
}
"""Module and class of the runtime that runs the files of a format."""

_PACKAGES = ("onnxruntime", "torch", "openvino", "ai-edge-litert", "executorch")


class _OpensFiles(Protocol):
    def __call__(self, path: str, *, options: RuntimeOptions) -> Runtime: ...


def open_runtime(format: Format, location: str, *, weights: str = "", options: RuntimeOptions) -> Runtime:  # noqa: A002
    """Load a model file, or a PyTorch source, with the runtime of its format.

    Raises:
        SourceNotFound: the file does not exist.
        InvalidModel: the runtime cannot load it.
        MissingExtra: the runtime's library is not installed.
    """
    if format is not Format.TORCH:
        return _runtime_class(format)(location, options=options)
    from forwardpass.runtimes.torch import TorchRuntime

    return TorchRuntime.from_reference(location, weights=weights, options=options)


def import_runtime(format: Format) -> None:  # noqa: A002
    """Import the library of a format, so that loading a model can be timed without it.

    Raises:
        MissingExtra: it is not installed.
    """
    if format is not Format.TORCH:
        _runtime_class(format)
        return
    import forwardpass.runtimes.torch  # noqa: F401


def runtime_versions() -> tuple[tuple[str, str], ...]:
    """Return the installed model libraries with their versions, without importing any."""
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for package in _PACKAGES:
        try:
            found.append((package, version(package)))
        except PackageNotFoundError:
            continue
    return tuple(found)


def _runtime_class(format: Format) -> _OpensFiles:  # noqa: A002
    module, name = _RUNTIMES[format]
    opens: _OpensFiles = getattr(import_module(f"forwardpass.runtimes.{module}"), name)
    return opens
