"""Keras files and TensorFlow's SavedModel folders, turned into ONNX by a process in an environment of its own.

A `.keras` file is loaded in Keras' safe mode: code inside of it is refused, not run. A SavedModel is a graph; what the
graph does, such as reading a file, it does. The parent runs the ONNX file and holds it against what the model itself
answered. Everything behind then sees an ONNX file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from forwardpass.convert.environments import IsolatedEnvironment
from forwardpass.convert.parity import check_parity, shape_grid
from forwardpass.convert.recorded import Recorded
from forwardpass.convert.values import ParityCheck, PlainModel
from forwardpass.core.protocols import Progress
from forwardpass.core.samples import Samples
from forwardpass.core.tensors import Array
from forwardpass.core.variants import Format
from forwardpass.errors import ExportFailed, InvalidModel
from forwardpass.runtimes import RuntimeOptions, is_saved_model, open_runtime

__all__ = ["is_keras", "plain_keras"]

ENVIRONMENT = IsolatedEnvironment(
    name="tf2onnx", packages=("tensorflow-cpu==2.21.0", "keras==3.15.1", "tf2onnx==1.17.0"), size_mb=1600
)
"""TensorFlow on the processor; tf2onnx is what writes ONNX from it, for Keras, too."""
PROGRAM = Path(__file__).parent / "isolated" / "keras_to_onnx.py"
LEGACY = (".h5", ".hdf5")
OPSET = 18
"""The newest that tf2onnx writes."""
TOLERANCE = 1e-4


def is_keras(model: str) -> bool:
    """Tell whether it is a file of Keras' or a SavedModel folder."""
    path = Path(model)
    return is_saved_model(path) or (path.suffix.lower() in (".keras", *LEGACY) and path.is_file())


@contextmanager
def plain_keras(model: str, samples: Samples | None, *, progress: Progress) -> Iterator[PlainModel]:
    """Give the model, one of Keras' or TensorFlow's turned into ONNX for as long as the block runs.

    The ONNX file has the inputs and outputs of the model by their names, and answers like it over a grid of shapes of
    the samples, or without any of random numbers.

    Raises:
        InvalidModel: it is in the older HDF5 format, or cannot be loaded without running code inside of it.
        ExportFailed: tf2onnx does not know an operator.
        ParityFailed: the ONNX file answers differently.
        EnvironmentUnavailable: TensorFlow cannot be installed.
    """
    if not is_keras(model):
        yield PlainModel(path=model)
        return
    if Path(model).suffix.lower() in LEGACY:
        reason = (
            "it is in Keras' older HDF5 format, which can hide code; load it where you made it and save it as .keras"
        )
        raise InvalidModel(path=model, reason=reason)
    with tempfile.TemporaryDirectory(prefix="forwardpass-keras-") as name:
        folder = Path(name)
        if samples is not None:
            _write_calls(folder / "calls.npz", samples)
        job = {"model": str(Path(model).absolute()), "opset": OPSET}
        progress("converting with tf2onnx", done=0.1)
        ENVIRONMENT.run(PROGRAM, folder, job, source=model, progress=progress)
        converted = (folder / "model.onnx").rename(folder / f"{Path(model).stem}.onnx")
        parity = _check(model, converted, folder / "answers.npz")
        yield PlainModel(path=str(converted), exporter="tf2onnx", parity=parity)


def _write_calls(path: Path, samples: Samples) -> None:
    calls = {
        f"{number}:{name}": array for number, call in enumerate(shape_grid(samples)) for name, array in call.items()
    }
    np.savez(path, allow_pickle=False, **calls)


def _check(model: str, converted: Path, answers: Path) -> tuple[ParityCheck, ...]:
    if not answers.is_file():
        raise ExportFailed(source=model, reason="tf2onnx ended well and wrote nothing")
    inputs: dict[int, dict[str, Array]] = {}
    outputs: dict[int, dict[str, Array]] = {}
    with np.load(answers, allow_pickle=False) as archive:
        for key in archive.files:
            number, kind, name = key.split(":", 2)
            (inputs if kind == "in" else outputs).setdefault(int(number), {})[name] = archive[key]
    runtime = open_runtime(Format.ONNX, str(converted), options=RuntimeOptions())
    source = Recorded(list(outputs.values()), runtime.signature, name="tensorflow")
    comparisons = check_parity(source, runtime, list(inputs.values()), name=model, tolerance=TOLERANCE)
    return tuple(comparison.check for comparison in comparisons)
