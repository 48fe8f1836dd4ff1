"""Picks the runtime for a variant's format, and imports its library only then."""

from __future__ import annotations

from forwardpass.core.protocols import Runtime
from forwardpass.core.variants import Format
from forwardpass.runtimes.options import RuntimeOptions

__all__ = ["open_runtime", "runtime_versions"]


def open_runtime(format: Format, location: str, *, weights: str = "", options: RuntimeOptions) -> Runtime:  # noqa: A002
    """Load a model file, or a PyTorch source, with the runtime of its format.

    Raises:
        SourceNotFound: the file does not exist.
        InvalidModel: the runtime cannot load it.
        MissingExtra: the runtime's library is not installed.
    """
    if format is Format.ONNX:
        from forwardpass.runtimes.onnx import OnnxRuntime

        return OnnxRuntime(location, options=options)
    from forwardpass.runtimes.torch import TorchRuntime

    return TorchRuntime.from_reference(location, weights=weights, options=options)


def runtime_versions() -> tuple[tuple[str, str], ...]:
    """Return the installed model libraries with their versions, without importing any."""
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for package in ("onnxruntime", "torch"):
        try:
            found.append((package, version(package)))
        except PackageNotFoundError:
            continue
    return tuple(found)
