"""Keras files and SavedModel folders to ONNX with TensorFlow and tf2onnx: `python keras_to_onnx.py FOLDER`.

Reads `job.json` (`model`, its path; `opset`) and, if there are samples, `calls.npz` (arrays named `<call>:<input>`) in
the folder. Writes `model.onnx` and `answers.npz`, or one line into `failure.txt`, or `unfit.txt` if it is the samples.

The answers are the model's own, in arrays named `<call>:out:<output>` beside the calls as `<call>:in:<input>`; without
samples the calls are of random numbers.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

NUM_ROWS = (1, 2, 3, 5, 8)
"""Of the calls that are made up."""
SIZES = (16, 24, 33, 64)
"""What a dynamic axis measures in calls that are made up: some networks need a least size, or an even one."""
SIGNATURE = "serving_default"


class Refused(Exception):
    """The model cannot be used, for a reason that is one sentence."""


class Unfit(Refused):
    """It is the samples that cannot be used."""


def main(folder: Path) -> None:
    """Convert what the job names."""
    job = json.loads((folder / "job.json").read_text())
    path = Path(job["model"])
    saved, names = (path, []) if path.is_dir() else exported(path, folder / "saved")
    import tensorflow as tf

    loaded = tf.saved_model.load(str(saved))
    function = loaded.signatures.get(SIGNATURE)
    if function is None:
        known = ", ".join(loaded.signatures) or "none"
        raise Refused(f"it has no signature '{SIGNATURE}', which is what is served; it has {known}")
    inputs: dict[str, Any] = in_order(function.structured_input_signature[1])
    outputs = list(in_order(function.structured_outputs))
    if not inputs or any(spec.shape.rank is None for spec in inputs.values()):
        raise Refused("its signature takes no tensors, or tensors of any number of axes")
    if len(names) != len(outputs) or outputs != [f"output_{at}" for at in range(len(outputs))]:
        names = outputs
    write_onnx(folder / "model.onnx", function, inputs, dict(zip(outputs, names, strict=True)), job["opset"])
    calls = given(folder / "calls.npz", inputs) or made_up(function, inputs)
    record(folder / "answers.npz", function, calls, dict(zip(outputs, names, strict=True)))


def in_order(specs: dict[str, Any]) -> dict[str, Any]:
    """Sort by name, `output_10` behind `output_9`: TensorFlow's own order differs from run to run."""
    return {name: specs[name] for name in sorted(specs, key=lambda name: (len(name), name))}


def exported(path: Path, target: Path) -> tuple[Path, list[str]]:
    """Write a Keras file as a SavedModel, and return the names of its outputs; code inside of the file is refused."""
    import keras

    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except ValueError as error:
        if "arbitrary code execution" not in str(error):
            raise
        raise Refused(
            "it holds Python code, such as a Lambda layer, which is never run; use layers of Keras"
        ) from error
    model.export(target, format="tf_saved_model", verbose=False)
    return target, list(getattr(model, "output_names", []))


def write_onnx(path: Path, function: Any, inputs: dict[str, Any], outputs: dict[str, str], opset: int) -> None:
    """Write the function with the names that users know; `outputs` maps the signature's names to those."""
    import tensorflow as tf
    import tf2onnx.convert

    specs = [tf.TensorSpec(spec.shape, spec.dtype, name=name) for name, spec in inputs.items()]

    def call(*tensors: Any) -> Any:
        answers = function(**dict(zip(inputs, tensors, strict=True)))
        return tuple(answers[name] for name in outputs)

    traced = tf.function(call, input_signature=specs)
    model, _ = tf2onnx.convert.from_function(traced, input_signature=specs, opset=opset)
    graph = model.graph
    wanted = [*inputs, *outputs.values()]
    renamed = {value.name: name for value, name in zip([*graph.input, *graph.output], wanted, strict=True)}
    rename(graph, renamed)
    for value in [*graph.input, *graph.output]:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.dim_value:
                dim.dim_param = "batch" if axis == 0 else f"{value.name}_axis{axis}"
    path.write_bytes(model.SerializeToString())


def rename(graph: Any, names: dict[str, str]) -> None:
    """Give values other names; one of the graph's own that is in the way gets out of it."""
    taken = {name for node in graph.node for name in node.output} | {tensor.name for tensor in graph.initializer}
    names = {**{name: f"{name}/inner" for name in names.values() if name in taken and name not in names}, **names}
    for value in [*graph.input, *graph.output, *graph.value_info, *graph.initializer]:
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def given(path: Path, inputs: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the calls of the user's samples, in the dtypes of the model."""
    if not path.is_file():
        return []
    import numpy as np

    calls: dict[int, dict[str, Any]] = {}
    with np.load(path, allow_pickle=False) as archive:
        for key in archive.files:
            number, _, name = key.partition(":")
            calls.setdefault(int(number), {})[name] = archive[key]
    wanted = ", ".join(f"{name} {described(spec)}" for name, spec in inputs.items())
    for call in calls.values():
        if set(call) != set(inputs):
            raise Unfit(f"they have the arrays {', '.join(call)}, and the model takes {wanted}")
        for name, array in call.items():
            spec = inputs[name]
            if array.dtype != spec.dtype.as_numpy_dtype or not spec.shape.is_compatible_with(array.shape):
                raise Unfit(f"they have {name} as {array.dtype}{list(array.shape)}, and the model takes {wanted}")
    return list(calls.values())


def described(spec: Any) -> str:
    """Return dtype and shape, the batch by its name."""
    sizes = ["batch" if axis == 0 and size is None else size or "any" for axis, size in enumerate(spec.shape)]
    return f"{spec.dtype.name}[{', '.join(map(str, sizes))}]"


def made_up(function: Any, inputs: dict[str, Any]) -> list[dict[str, Any]]:
    """Return calls of random numbers: normal ones, and zeros and ones for whole numbers."""
    calls: list[dict[str, Any]] = []
    for size in SIZES:
        tried = [random_call(inputs, num_rows, size) for num_rows in NUM_ROWS]
        calls += tried if all(runs(function, call) for call in tried) else []
        if all(size is not None for spec in inputs.values() for size in spec.shape[1:]):
            break
    if not calls:
        raise Refused("it runs with none of the calls that were made up; give samples with --data")
    return calls


def runs(function: Any, call: dict[str, Any]) -> bool:
    """Tell whether the model takes a call."""
    try:
        answer(function, call)
    except Exception:  # whatever TensorFlow raises for a size that it does not take
        return False
    return True


def random_call(inputs: dict[str, Any], num_rows: int, size: int) -> dict[str, Any]:
    """Return one call, a dynamic axis behind the batch measuring `size`."""
    import numpy as np

    generator = np.random.default_rng(num_rows)
    call = {}
    for name, spec in inputs.items():
        rows = [spec.shape[0] or num_rows] if spec.shape.rank else []
        shape = [*rows, *(known or size for known in spec.shape[1:])]
        whole = spec.dtype.is_integer or spec.dtype.is_bool
        values = generator.integers(0, 2, shape) if whole else generator.standard_normal(shape)
        call[name] = values.astype(spec.dtype.as_numpy_dtype)
    return call


def record(path: Path, function: Any, calls: list[dict[str, Any]], outputs: dict[str, str]) -> None:
    """Write every call with its answer."""
    import numpy as np

    recorded: dict[str, Any] = {}
    for number, call in enumerate(calls):
        answers = answer(function, call)
        recorded |= {f"{number}:in:{name}": array for name, array in call.items()}
        recorded |= {f"{number}:out:{shown}": answers[name] for name, shown in outputs.items()}
    np.savez(path, allow_pickle=False, **recorded)


def answer(function: Any, call: dict[str, Any]) -> dict[str, Any]:
    """Run one call in TensorFlow."""
    import tensorflow as tf

    answers = function(**{name: tf.constant(array) for name, array in call.items()})
    return {name: value.numpy() for name, value in answers.items()}


if __name__ == "__main__":
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", "KERAS_BACKEND": "tensorflow"}
    try:
        main(Path(sys.argv[1]))
    except BaseException as error:  # TensorFlow raises what lies deep below it
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        kind = "" if isinstance(error, Refused) else f"{type(error).__name__}: "
        told = "unfit.txt" if isinstance(error, Unfit) else "failure.txt"
        Path(sys.argv[1], told).write_text(f"{kind}{lines[0] if lines else 'no message'}")
        sys.exit(1)
