"""What every rival's program shares: its settings, and the model in ONNX Runtime."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

__all__ = ["SETTINGS", "Model", "Settings"]


@dataclass(frozen=True)
class Settings:
    """What the benchmark asks of a server. `sheds` is whether it may refuse what would miss `slo_s`."""

    model: str
    port: int
    num_workers: int
    num_threads: int
    max_batch: int
    window_s: float
    slo_s: float
    max_waiting: int
    sheds: bool
    kind: str


SETTINGS = Settings(**json.loads(os.environ["PEER_SETTINGS"]))


class Model:
    """A session with as many threads as the benchmark allows."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = SETTINGS.num_threads
        options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(SETTINGS.model, options, providers=["CPUExecutionProvider"])
        (given,) = self._session.get_inputs()
        self.input_name: str = given.name
        self.dtype: Any = np.dtype({"tensor(float)": "float32", "tensor(int64)": "int64"}[given.type])
        self.row_size: int = given.shape[1]

    def run(self, rows: Any) -> Any:
        """Return the scores, one row for each of `rows`."""
        return self._session.run(["scores"], {self.input_name: rows})[0]
