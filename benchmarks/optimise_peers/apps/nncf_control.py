"""NNCF with accuracy control, for ONNX or for OpenVINO: `nncf_control.py TASK onnx|openvino`.

https://docs.openvino.ai/2026/openvino-workflow/model-optimization-guide/quantizing-models-post-training/quantizing-with-accuracy-control.html
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import nncf
import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
from common import Task

Run = Callable[[dict[str, np.ndarray]], np.ndarray]


def runner(model: Any) -> Run:
    """Return how NNCF's model is run: a compiled model of OpenVINO, or an ONNX model."""
    if isinstance(model, ov.CompiledModel):
        return lambda inputs: model(inputs)[0]
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, inputs)[0]


def main() -> None:
    task = Task()
    is_openvino = sys.argv[2] == "openvino"
    model = ov.Core().read_model(task.onnx) if is_openvino else onnx.load(task.onnx)

    def validate(compiled: Any, rows: Iterable[Any]) -> tuple[float, list[float]]:
        scores = task.item_scores(runner(compiled), rows)
        return float(np.mean(scores)), scores

    quantised = nncf.quantize_with_accuracy_control(
        model,
        calibration_dataset=nncf.Dataset(list(task.rows("calibration")), lambda row: row[0]),
        validation_dataset=nncf.Dataset(list(task.rows("validation"))),
        validation_fn=validate,
        max_drop=task.max_drop,
        drop_type=nncf.DropType.RELATIVE,
        model_type=nncf.ModelType.TRANSFORMER if task.is_transformer else None,
    )
    out = task.folder / ("model.xml" if is_openvino else "model.onnx")
    if is_openvino:
        ov.save_model(quantised, str(out), compress_to_fp16=False)
    else:
        onnx.save(quantised, str(out))
    kind = "openvino" if is_openvino else "onnxruntime"
    task.finish({"name": "accuracy control", "kind": kind, "file": str(out)})


if __name__ == "__main__":
    main()
