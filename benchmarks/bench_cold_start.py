"""How long does a fresh process take to its first answer from a bundle, and how much of it is forwardpass?

Rivals, each in its own process, in turns: `forwardpass` opens the bundle (every file hashed, golden answers checked)
and predicts; `floor` imports ONNX Runtime, loads the same file with the same settings and runs. Both are given the
input as a file, so that neither pays for making it up. One JSON line on stdout:

    python benchmarks/bench_cold_start.py [MODEL.onnx] [--repetitions 15]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from forwardpass.core.calls import random_tensors
from forwardpass.core.measurement import Measurement
from forwardpass.core.statistics import measure_median, measure_ratio
from forwardpass.core.tensors import BATCH_AXIS, Array
from forwardpass.core.variants import BatchInvariance, Format, Precision, Variant
from forwardpass.predict import PackingList, VariantToPack, pack_bundle
from forwardpass.profile import describe_machine
from forwardpass.runtimes import RuntimeOptions, open_runtime

NUM_WARM_UPS = 2
"""Starts that fill the page cache and the cache of compiled modules, and are not counted."""

OURS = """
import sys, time
marks = [("begin", time.perf_counter())]
import numpy as np
marks.append(("numpy", time.perf_counter()))
inputs = dict(np.load(sys.argv[2]))
marks.append(("inputs", time.perf_counter()))
from forwardpass.predict import Predictor
marks.append(("import", time.perf_counter()))
predictor = Predictor.open(sys.argv[1])
marks.append(("open", time.perf_counter()))
predictor.predict(inputs)
marks.append(("predict", time.perf_counter()))
import json, os
print(json.dumps({name: at - marks[n][1] for n, (name, at) in enumerate(marks[1:])}), flush=True)
os._exit(0)
"""

# The steps of Predictor.open one by one, to see where its time goes.
STEPS = """
import sys, time
import numpy as np
from forwardpass.predict import Predictor
from forwardpass.predict.golden import check_golden
from forwardpass.bundle import open_bundle
marks = [("begin", time.perf_counter())]
bundle = open_bundle(sys.argv[1])
marks.append(("hash", time.perf_counter()))
import forwardpass.runtimes.onnx
marks.append(("import onnxruntime", time.perf_counter()))
from forwardpass.runtimes import RuntimeOptions, open_runtime
variant = bundle.variant()
runtime = open_runtime(variant.format, str(bundle.locate(variant.path)), options=RuntimeOptions())
marks.append(("load", time.perf_counter()))
calls = bundle.golden_calls(variant)
marks.append(("read golden", time.perf_counter()))
check_golden(runtime, calls, variant=variant.name, tolerance=variant.golden.tolerance)
marks.append(("check golden", time.perf_counter()))
import json, os
print(json.dumps({name: at - marks[n][1] for n, (name, at) in enumerate(marks[1:])}), flush=True)
os._exit(0)
"""

FLOOR = """
import sys, time
marks = [("begin", time.perf_counter())]
import numpy as np
marks.append(("numpy", time.perf_counter()))
inputs = dict(np.load(sys.argv[2]))
marks.append(("inputs", time.perf_counter()))
import onnxruntime as ort
marks.append(("import", time.perf_counter()))
options = ort.SessionOptions()
options.intra_op_num_threads = 1
options.inter_op_num_threads = 1
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
marks.append(("open", time.perf_counter()))
session.run(None, inputs)
marks.append(("predict", time.perf_counter()))
import json, os
print(json.dumps({name: at - marks[n][1] for n, (name, at) in enumerate(marks[1:])}), flush=True)
os._exit(0)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--repetitions", type=int, default=15)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = arguments.model or write_model(folder / "model.onnx")
        inputs = prepare_inputs(model, folder)
        bundle = prepare_bundle(model, folder, inputs)
        rivals = {
            "forwardpass": [OURS, str(bundle), str(folder / "inputs.npz")],
            "floor": [FLOOR, str(model), str(folder / "inputs.npz")],
            "steps": [STEPS, str(bundle)],
        }
        starts = run_interleaved(rivals, arguments.repetitions, environment(folder))
        print(json.dumps(report(starts, model)))


def write_model(path: Path) -> Path:
    """Write a network of three dense layers, about 8.7 MB."""
    generator = np.random.default_rng(0)
    sizes = (64, 1024, 2048, 10)
    initialisers, nodes, last = [], [], "x"
    for at, (width, height) in enumerate(pairwise(sizes)):
        weights = generator.standard_normal((width, height)).astype(np.float32) / np.sqrt(width)
        initialisers += [numpy_helper.from_array(weights.astype(np.float32), f"w{at}")]
        nodes += [
            helper.make_node("MatMul", [last, f"w{at}"], [f"m{at}"]),
            helper.make_node("Relu", [f"m{at}"], [f"y{at}"]),
        ]
        last = f"y{at}"
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", sizes[0]])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["batch", sizes[-1]])],
        initialisers,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    return path


def prepare_inputs(model: Path, folder: Path) -> dict[str, Array]:
    signature = open_runtime(Format.ONNX, str(model), options=RuntimeOptions()).signature
    inputs = random_tensors(signature, {BATCH_AXIS: 1})
    np.savez(folder / "inputs.npz", allow_pickle=False, **inputs)
    return inputs


def prepare_bundle(model: Path, folder: Path, inputs: dict[str, Array]) -> Path:
    variant = Variant(name="model", format=Format.ONNX, precision=Precision.FP32, location=str(model))
    packed = VariantToPack(variant=variant, invariance=BatchInvariance.BITWISE)
    packing = PackingList(name="bench", variants=[packed], golden_inputs=[inputs] * 4, machine=describe_machine())
    return pack_bundle(folder / "bundle", packing).path


def environment(folder: Path) -> dict[str, str]:
    """Give the rivals compiled modules, as an installation has them, whatever this shell is set to."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, "PYTHONPYCACHEPREFIX": str(folder / "pycache")}


def run_interleaved(
    rivals: dict[str, list[str]], repetitions: int, variables: dict[str, str]
) -> dict[str, list[dict[str, float]]]:
    starts: dict[str, list[dict[str, float]]] = {name: [] for name in rivals}
    for repetition in range(-NUM_WARM_UPS, repetitions):
        for name, command in rivals.items():
            phases = start_once(command, variables)
            if repetition >= 0:
                starts[name].append(phases)
    return starts


def start_once(command: list[str], variables: dict[str, str]) -> dict[str, float]:
    """Start a process and return its phases; `total` is from outside, `python` is what the phases do not hold."""
    started = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", *command], stdout=subprocess.PIPE, env=variables) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        total = time.perf_counter() - started
    phases: dict[str, float] = json.loads(line)
    return {"python": total - sum(phases.values()), **phases, "total": total}


def report(starts: dict[str, list[dict[str, float]]], model: Path) -> dict[str, object]:
    totals = {name: np.array([phases["total"] for phases in starts[name]]) for name in ("forwardpass", "floor")}
    return {
        "benchmark": "cold_start",
        "machine": msgspec.to_builtins(describe_machine()),
        "model_bytes": model.stat().st_size,
        "repetitions": len(totals["floor"]),
        "total_ms": {name: in_ms(measure_median(values, unit="s")) for name, values in totals.items()},
        "extra_ms": in_ms(measure_median(totals["forwardpass"] - totals["floor"], unit="s")),
        "ratio": msgspec.to_builtins(measure_ratio(totals["forwardpass"], totals["floor"])),
        "phases_ms": {
            name: {phase: round(median(start[phase] for start in runs) * 1e3, 2) for phase in runs[0]}
            for name, runs in starts.items()
        },
    }


def in_ms(measured: Measurement) -> dict[str, float]:
    return {
        "median": round(measured.value * 1e3, 2),
        "low": round(measured.interval.low * 1e3, 2),
        "high": round(measured.interval.high * 1e3, 2),
    }


if __name__ == "__main__":
    main()
