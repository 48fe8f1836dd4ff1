"""ONNX to LiteRT with onnx2tf and TensorFlow: `python onnx_to_litert.py FOLDER`.

Reads `job.json` (`precision`), `model.onnx` and, for static INT8, `calibration.npz` (arrays named `<call>:<input>`) in
the folder; writes `model.tflite`, or one line into `failure.txt`.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def main(folder: Path) -> None:
    """Convert what is in the folder."""
    job = json.loads((folder / "job.json").read_text())
    import onnx
    import onnx2tf

    model = onnx.load(str(folder / "model.onnx"))
    names = [value.name for value in model.graph.input]
    simplified = folder / "simplified.onnx"  # onnx2tf rewrites the file that it is given
    shutil.copyfile(folder / "model.onnx", simplified)
    onnx2tf.convert(
        input_onnx_file_path=str(simplified),
        output_folder_path=str(folder / "saved"),
        output_signaturedefs=True,
        copy_onnx_input_output_names_to_tflite=True,
        keep_shape_absolutely_input_names=names,  # images stay channels first, as the source takes them
        non_verbose=True,
    )
    if job["precision"] == "fp32":
        (written,) = (folder / "saved").glob("*_float32.tflite")
        written.rename(folder / "model.tflite")
    else:
        (folder / "model.tflite").write_bytes(quantised(folder, static=job["precision"] == "int8-static"))


def quantised(folder: Path, *, static: bool) -> bytes:
    """Return the model with weights in 8 bits, and for `static` activations, too; floats go in and come out."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "saved"))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if static:
        converter.representative_dataset = lambda: calibration(folder / "calibration.npz")
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    return bytes(converter.convert())


def calibration(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the calls to calibrate with."""
    import numpy as np

    with np.load(path, allow_pickle=False) as archive:
        calls: dict[int, dict[str, Any]] = {}
        for key in archive.files:
            call, _, tensor = key.partition(":")
            calls.setdefault(int(call), {})[tensor] = archive[key]
    yield from (calls[number] for number in sorted(calls))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except BaseException as error:  # onnx2tf exits where it gives up
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        Path(sys.argv[1], "failure.txt").write_text(f"{type(error).__name__}: {lines[0] if lines else 'no message'}")
        sys.exit(1)
