"""LiteRT files, from ONNX."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from forwardpass.convert.environments import IsolatedEnvironment
from forwardpass.core.protocols import Progress
from forwardpass.core.samples import Samples
from forwardpass.core.tensors import Array, Signature
from forwardpass.core.variants import Precision
from forwardpass.errors import ExportFailed, InvalidSamples

__all__ = ["save_litert"]

ENVIRONMENT = IsolatedEnvironment(name="onnx2tf", packages=("onnx2tf==1.29.24",), size_mb=2600)
"""onnx2tf pins TensorFlow, numpy 1 and an older onnx. Its later versions need a newer Python than we do."""
PROGRAM = Path(__file__).parent / "isolated" / "onnx_to_litert.py"
MAX_CALIBRATION_CALLS = 200


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
        np.savez(folder / "calibration.npz", allow_pickle=False, **_calibration(samples, name))
    ENVIRONMENT.run(PROGRAM, folder, {"precision": precision.value}, source=name, progress=progress)
    written = folder / "model.tflite"
    if not written.is_file():
        raise ExportFailed(source=name, reason="onnx2tf ended well and wrote nothing")
    out.write_bytes(with_signature(written.read_bytes(), signature))
    shutil.rmtree(folder / "saved", ignore_errors=True)


def _calibration(samples: Samples | None, name: str) -> dict[str, Array]:
    if samples is None:
        hint = "Give some with --data samples.npz, or choose --precision int8-dynamic."
        raise InvalidSamples(origin=name, reason="static INT8 is calibrated with samples", hint=hint)
    return {
        f"{number}:{tensor}": array
        for number, call in zip(range(MAX_CALIBRATION_CALLS), _rows(samples), strict=False)
        for tensor, array in call.items()
    }


def _rows(samples: Samples) -> Iterator[dict[str, Array]]:
    """Yield the samples one by one, the groups in turns."""
    for row in range(max(len(group) for group in samples.groups)):
        for group in samples.groups:
            if row < len(group):
                yield {tensor: array[row : row + 1] for tensor, array in group.inputs.items()}
