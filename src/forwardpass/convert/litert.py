"""LiteRT files, from ONNX."""

from __future__ import annotations

import shutil
from pathlib import Path

from forwardpass.convert.calibration import write_calibration
from forwardpass.convert.environments import IsolatedEnvironment
from forwardpass.core.protocols import Progress
from forwardpass.core.samples import Samples
from forwardpass.core.tensors import Signature
from forwardpass.core.variants import Precision
from forwardpass.errors import ExportFailed

__all__ = ["save_litert"]

ENVIRONMENT = IsolatedEnvironment(name="onnx2tf", packages=("onnx2tf==1.29.24",), size_mb=2600)
"""onnx2tf pins TensorFlow, numpy 1 and an older onnx. Its later versions need a newer Python than we do."""
PROGRAM = Path(__file__).parent / "isolated" / "onnx_to_litert.py"


def save_litert(
    model: Path,
    out: Path,
    signature: Signature,
    *,
    precision: Precision,
    samples: Samples | None,
    name: str,
    progress: Progress,
) -> None:
    """Write the ONNX file `model`, which is in a folder of its own, as LiteRT; the work is done beside it.

    Raises:
        ExportFailed: an operator has no counterpart, or none in 8 bits.
        InvalidSamples: static INT8 is asked for without samples to calibrate with.
        EnvironmentUnavailable: the converter cannot be installed.
        MissingExtra: LiteRT is not installed.
    """
    from forwardpass.runtimes.litert import with_signature

    folder = model.parent
    if precision is Precision.INT8_STATIC:
        write_calibration(folder / "calibration.npz", samples, name=name)
    ENVIRONMENT.run(PROGRAM, folder, {"precision": precision.value}, source=name, progress=progress)
    written = folder / "model.tflite"
    if not written.is_file():
        raise ExportFailed(source=name, reason="onnx2tf ended well and wrote nothing")
    out.write_bytes(with_signature(written.read_bytes(), signature))
    shutil.rmtree(folder / "saved", ignore_errors=True)
