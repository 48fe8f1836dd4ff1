"""The clock, the same program in every environment: opens one model, and runs rounds of calls when it is told to.

Reads one JSON document a line and answers with one. Inputs and outputs are numpy arrays in every runtime: what a call
costs a user of it includes taking them.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[dict[str, np.ndarray]], np.ndarray]


def open_onnxruntime(file: str, num_threads: int, **_: Any) -> Run:
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = num_threads
    settings.log_severity_level = 3
    session = ort.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, inputs)[0]


def open_openvino(file: str, num_threads: int, properties: dict[str, str] | None = None, **_: Any) -> Run:
    import openvino as ov

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": str(num_threads), **(properties or {})}
    core = ov.Core()
    request = core.compile_model(core.read_model(file), "CPU", settings).create_infer_request()

    def run(inputs: dict[str, np.ndarray]) -> np.ndarray:
        request.infer(inputs)
        return np.array(request.get_output_tensor(0).data)

    return run


def open_torch(factory: str, weights: str, num_threads: int, compiled: bool = False, **_: Any) -> Run:
    import importlib

    import torch

    torch.set_num_threads(num_threads)
    module, _, name = factory.partition(":")
    network = getattr(importlib.import_module(module), name)().eval()
    if weights:
        from safetensors.torch import load_file

        network.load_state_dict(load_file(weights))
    if compiled:
        network = torch.compile(network)

    def run(inputs: dict[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            answer = network(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        return next(iter(answer.values())).numpy()

    return run


def open_forwardpass(file: str, form: str, num_threads: int, **_: Any) -> Run:
    from forwardpass.core.variants import Format
    from forwardpass.runtimes import RuntimeOptions, open_runtime

    runtime = open_runtime(Format(form), file, options=RuntimeOptions(num_threads=num_threads))
    return lambda inputs: next(iter(runtime.run(inputs).values()))


OPENERS = {
    "onnxruntime": open_onnxruntime,
    "openvino": open_openvino,
    "torch": open_torch,
    "forwardpass": open_forwardpass,
}


class Clock:
    """One opened model with the rows that it is asked for."""

    def __init__(self) -> None:
        self._run: Run | None = None
        self._calls: list[dict[str, np.ndarray]] = []

    def open(self, kind: str, data: str, input_names: list[str], max_calls: int, **how: Any) -> dict[str, Any]:
        """Open a model, take rows spread over all lengths, and run each once."""
        rows = load_rows(Path(data), input_names)
        places = np.linspace(0, len(rows) - 1, min(max_calls, len(rows))).astype(int)
        self._calls = [rows[at] for at in places]
        self._run = OPENERS[kind](**how)
        for call in self._calls:
            self._run(call)
        start_s = time.perf_counter()
        for call in self._calls:
            self._run(call)
        return {"call_s": (time.perf_counter() - start_s) / len(self._calls)}

    def round(self, num_passes: int) -> dict[str, Any]:
        """Return the seconds of a call: of each row the quickest of the passes, and of the rows the mean.

        Neighbours on a shared machine can only lengthen a call, and the quickest has met the fewest of them.
        """
        assert self._run is not None
        self._run(self._calls[0])
        seconds = np.empty((num_passes, len(self._calls)))
        for number in range(num_passes):
            for at, call in enumerate(self._calls):
                start_s = time.perf_counter()
                self._run(call)
                seconds[number, at] = time.perf_counter() - start_s
        return {"call_s": float(seconds.min(axis=0).mean())}

    def answer(self, data: str, input_names: list[str], out: str) -> dict[str, Any]:
        """Write the answer to every row."""
        assert self._run is not None
        answers = [self._run(row) for row in load_rows(Path(data), input_names)]
        np.save(out, np.concatenate(answers))
        return {"num_rows": len(answers)}


def load_rows(folder: Path, input_names: list[str]) -> list[dict[str, np.ndarray]]:
    """Return single rows, in the order of the files."""
    rows = []
    for file in sorted(folder.glob("*.npz")):
        with np.load(file) as arrays:
            group = {name: arrays[name] for name in input_names}
        num_rows = len(next(iter(group.values())))
        rows += [{name: array[at : at + 1] for name, array in group.items()} for at in range(num_rows)]
    return rows


def main() -> None:
    """Serve until the pipe is closed. What a library prints goes to stderr: stdout is for answers."""
    answers, sys.stdout = sys.stdout, sys.stderr
    clock = Clock()
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = getattr(clock, command.pop("do"))(**command)
        except Exception as error:
            answer = {"failure": f"{type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else ''}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
