"""ONNX Runtime's own quantisation as its documentation shows it: pre-processing, then dynamic or static defaults.

https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

import time
from typing import Any

from common import Task
from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


class Reader(CalibrationDataReader):
    """Hands the calibration rows over, one at a time."""

    def __init__(self, task: Task) -> None:
        self._rows = task.rows("calibration")

    def get_next(self) -> dict[str, Any] | None:
        """Return the inputs of the next row, or None."""
        row = next(self._rows, None)
        return None if row is None else row[0]


def main() -> None:
    task = Task()
    prepared = str(task.folder / "prepared.onnx")
    choices, failures = [], {}
    try:
        quant_pre_process(task.onnx, prepared)
    except Exception as error:
        failures["quant_pre_process"] = f"{type(error).__name__}: {error}"
        prepared = task.onnx
    for name in ("dynamic", "static"):
        start_s, out = time.perf_counter(), str(task.folder / f"{name}.onnx")
        try:
            if name == "dynamic":
                quantize_dynamic(prepared, out)
            else:
                quantize_static(prepared, out, Reader(task))
        except Exception as error:
            failures[name] = f"{type(error).__name__}: {error}"
            continue
        choices.append({"name": name, "kind": "onnxruntime", "file": out, "search_s": time.perf_counter() - start_s})
    task.finish(*choices, failures=failures)


if __name__ == "__main__":
    main()
