"""LiteRT, the former TensorFlow Lite, on the processor."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from forwardpass.core.tensors import BATCH_AXIS, Array, Dimension, Signature, Tensors, TensorSpec
from forwardpass.errors import InvalidModel, MissingExtra, SourceNotFound
from forwardpass.runtimes.options import RuntimeOptions
from forwardpass.runtimes.signatures import SIGNATURE_ENTRY, decode_signature, encode_signature

try:
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.interpreter import Interpreter

    from forwardpass.runtimes.litert_remark import hear_remark
except ImportError as error:
    raise MissingExtra(package="ai-edge-litert", extra="litert", purpose="running LiteRT files") from error

__all__ = ["LitertRuntime", "with_signature"]

hear_remark()


class LitertRuntime:
    """A LiteRT file. Its memory is planned anew whenever the shapes of the inputs change."""

    name = "litert"
    version = version("ai-edge-litert")

    def __init__(self, path: str, *, options: RuntimeOptions) -> None:
        if not Path(path).is_file():
            raise SourceNotFound(path=path, expected="a LiteRT file (.tflite)")
        content = Path(path).read_bytes()
        try:
            self._interpreter: Any = Interpreter(model_content=content, num_threads=options.num_threads)
            self._inputs, self._outputs = _tensors_by_name(self._interpreter)
            self._interpreter.allocate_tensors()
        except Exception as error:  # ValueError and RuntimeError with the lines of its C++
            line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise InvalidModel(path=path, reason=f"LiteRT cannot load it ({line[:200]})") from error
        self._shapes = {name: tuple(detail["shape"]) for name, detail in self._inputs.items()}
        self._signature = _stored(content) or _declared(self._inputs, self._outputs)
        _check_names(self._signature, self._inputs, self._outputs, path)

    @property
    def signature(self) -> Signature:
        """Inputs and outputs, with the first dynamic axis that all share named `batch`."""
        return self._signature

    def run(self, tensors: Tensors) -> dict[str, Array]:
        """Run one call."""
        shapes = {name: array.shape for name, array in tensors.items()}
        if shapes != self._shapes:
            self._shapes = {}
            for name, array in tensors.items():
                self._interpreter.resize_tensor_input(self._inputs[name]["index"], array.shape, strict=True)
            self._interpreter.allocate_tensors()
            self._shapes = shapes
        for name, array in tensors.items():
            self._interpreter.set_tensor(self._inputs[name]["index"], np.ascontiguousarray(array))
        self._interpreter.invoke()
        return {name: self._interpreter.get_tensor(detail["index"]) for name, detail in self._outputs.items()}


def with_signature(model: bytes, signature: Signature) -> bytes:
    """Return the LiteRT file with the names of its dynamic axes, in one more entry of metadata, and of its outputs.

    TensorFlow calls outputs `output_0`, `output_1`, … in the order of the source.
    """
    import flatbuffers

    tree: Any = schema.ModelT.InitFromPackedBuf(model, 0)
    by_number = {f"output_{at}".encode(): spec.name.encode() for at, spec in enumerate(signature.outputs)}
    for definition in tree.signatureDefs or []:
        if {tensor.name for tensor in definition.outputs} == set(by_number):
            for tensor in definition.outputs:
                tensor.name = by_number[tensor.name]
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(encode_signature(signature).encode(), np.uint8)
    entry = schema.MetadataT()
    entry.name, entry.buffer = SIGNATURE_ENTRY, len(tree.buffers)
    tree.buffers.append(buffer)
    tree.metadata = [*(tree.metadata or []), entry]
    builder = flatbuffers.Builder(2 * len(model))
    builder.Finish(tree.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _check_names(signature: Signature, inputs: dict[str, Any], outputs: dict[str, Any], path: str) -> None:
    named = {spec.name for spec in signature.inputs}, {spec.name for spec in signature.outputs}
    if named != (set(inputs), set(outputs)):
        found = ", ".join((*inputs, *outputs))
        raise InvalidModel(path=path, reason=f"its signature names other tensors than it has: {found}")


def _stored(model: bytes) -> Signature | None:
    root: Any = schema.Model.GetRootAs(model, 0)
    for at in range(root.MetadataLength()):
        entry = root.Metadata(at)
        if entry.Name() == SIGNATURE_ENTRY.encode():
            return decode_signature(root.Buffers(entry.Buffer()).DataAsNumpy().tobytes())
    return None


def _tensors_by_name(interpreter: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the tensors by the names of the file's signature, or without one by their own."""
    if interpreter.get_signature_list():
        runner = interpreter.get_signature_runner()
        return dict(runner.get_input_details()), dict(runner.get_output_details())
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    return {detail["name"]: detail for detail in inputs}, {detail["name"]: detail for detail in outputs}


def _declared(inputs: dict[str, Any], outputs: dict[str, Any]) -> Signature:
    return Signature(
        inputs=tuple(_spec(name, detail, f"input{at}") for at, (name, detail) in enumerate(inputs.items())),
        outputs=tuple(_spec(name, detail, f"output{at}") for at, (name, detail) in enumerate(outputs.items())),
    )


def _spec(name: str, detail: Any, fallback: str) -> TensorSpec:
    sizes = detail["shape_signature"] if len(detail["shape_signature"]) else detail["shape"]
    shape: list[Dimension] = [
        int(size) if size >= 0 else BATCH_AXIS if axis == 0 else f"{fallback}_axis{axis}"
        for axis, size in enumerate(sizes)
    ]
    return TensorSpec(name=name, dtype=np.dtype(detail["dtype"]).name, shape=tuple(shape))
