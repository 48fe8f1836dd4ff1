"""What the programs of the other optimisers share: the task in, the score as its metric defines it, the choice out.

They run in environments of their own, so nothing of forwardpass is imported here.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np


class Task:
    """What an optimiser is given: a float ONNX file, calibration and validation samples, a metric and a floor."""

    def __init__(self) -> None:
        fields = json.loads(Path(sys.argv[1]).read_text())
        self.onnx: str = fields["onnx"]
        self.data = Path(fields["data"])
        self.metric: str = fields["metric"]
        self.max_drop: float = fields["max_drop"]
        self.limit_s: float = fields["limit_s"]
        self.is_transformer: bool = fields["is_transformer"]
        self.input_names: list[str] = fields["input_names"]
        self.folder = Path(fields["folder"])
        self.num_threads: int = fields["num_threads"]
        self.started_s = time.perf_counter()

    def rows(self, split: str) -> Iterator[tuple[dict[str, np.ndarray], int]]:
        """Yield single rows with their label (or, without labels, their number), as batch-1 inputs."""
        number = 0
        for file in sorted((self.data / split).glob("*.npz")):
            with np.load(file) as arrays:
                group = {name: arrays[name] for name in self.input_names}
                labels = arrays.get("labels")
            for row in range(len(next(iter(group.values())))):
                label = int(labels[row]) if labels is not None else number
                yield {name: array[row : row + 1] for name, array in group.items()}, label
                number += 1

    def item_scores(self, run: Callable[[dict[str, np.ndarray]], np.ndarray], rows: Any) -> list[float]:
        """Return the metric of each row: 1 or 0 for a decision, or the cosine to the float model's answer."""
        rows = list(rows)
        if self.metric == "accuracy":
            return [float(run(inputs)[0].argmax() == label) for inputs, label in rows]
        reference = self._reference()
        return [_cosine(run(inputs)[0], reference[number]) for inputs, number in rows]

    def _reference(self) -> list[np.ndarray]:
        if not hasattr(self, "_known"):
            import onnxruntime as ort

            session = ort.InferenceSession(self.onnx, providers=["CPUExecutionProvider"])
            self._known = [session.run(None, inputs)[0][0] for inputs, _ in self.rows("validation")]
        return self._known

    def finish(self, *choices: dict[str, Any], **notes: Any) -> None:
        """Write what was made: `file` and the `kind` of runtime for it, and how long it took."""
        answer = {"choices": choices, "search_s": time.perf_counter() - self.started_s, "notes": notes}
        (self.folder / "answer.json").write_text(json.dumps(answer))


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one.ravel().astype(np.float64), other.ravel().astype(np.float64)
    return float(one @ other / max(np.linalg.norm(one) * np.linalg.norm(other), 1e-12))
