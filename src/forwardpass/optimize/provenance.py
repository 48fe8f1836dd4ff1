"""What a search starts from and is run with, so that its files can be made again and recognised."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from forwardpass.core.samples import SampleSplits, fingerprint_samples
from forwardpass.core.version import VERSION
from forwardpass.optimize.values import Provenance

__all__ = ["provenance_of"]

_WRITERS = ("numpy", "onnx", "onnxruntime")
_TORCH_WRITERS = ("torch", "onnxscript", "torch-pruning", "torchao")
"""They export a PyTorch source and train what is made of it."""
_EXPORTERS = {"skl2onnx": ("skl2onnx", "scikit-learn", "xgboost", "lightgbm")}
"""What reads a source of another library and writes ONNX, where it is installed beside forwardpass."""


def provenance_of(
    source: str, *, source_sha256: str, is_torch: bool, exporter: str, splits: SampleSplits, command: str
) -> Provenance:
    """Gather what a search of `source` with these samples rests on; `command` is what was typed, or empty."""
    packages = (*_WRITERS, *(_TORCH_WRITERS if is_torch else ()), *_EXPORTERS.get(exporter, ()))
    named = (("calibration", splits.calibration), ("validation", splits.validation), ("test", splits.test))
    return Provenance(
        source=source,
        source_sha256=source_sha256,
        samples=tuple((name, fingerprint_samples(samples)) for name, samples in named),
        packages=(("forwardpass", VERSION), *((name, found) for name in packages if (found := _version(name)))),
        command=command,
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
