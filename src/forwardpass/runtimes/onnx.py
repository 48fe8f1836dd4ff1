"""ONNX Runtime on the processor."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime as ort

from forwardpass.core.strings import as_strings, strings_array
from forwardpass.core.tensors import BATCH_AXIS, Array, Dimension, Signature, Tensors, TensorSpec
from forwardpass.core.variants import SUFFIXES, Format
from forwardpass.errors import InvalidModel, SourceNotFound, TensorMismatch
from forwardpass.runtimes.options import RuntimeOptions
from forwardpass.runtimes.processors import LAYOUT, vector_layout

__all__ = ["OnnxRuntime", "save_mapped", "save_optimised", "save_ort", "save_packed", "session_options"]

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
    "tensor(string)": "object",
}
_LEVELS = {
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_MAPPED_IN_PLACE = ("session.use_memory_mapped_ort_model", "session.use_ort_model_bytes_for_initializers")
"""ONNX Runtime's own format is used where it lies on the disk: nothing is parsed, no weight is copied. Giving it the
bytes of such a file with `session.use_ort_model_bytes_directly` would do the same, but its Python binding frees them
right after loading (1.32: the first call ends the process)."""
MIN_MAPPED_BYTES = 1024
"""Smaller weights stay in the graph, as exporters keep them: a page of the disk each would not pay."""
SPIN_US = 50
"""How long a thread that has nothing to do looks busily for the next node before it sleeps. On two quiet cores a call
with two threads takes a fifth to a third less time than with threads that sleep at once, and less processor time, too;
beside other busy processes it takes as long. Without an end, ONNX Runtime's default, it takes up to a third longer
there."""
FIRST_TO_END_SPINNING = (1, 26)
"""The version of ONNX Runtime that ends it when it is told; with older ones threads sleep at once."""
_LOG_NOTHING = 4
"""What goes wrong is raised; the log would repeat it with values of the input, which belong to a client."""
_OUT_OF_MEMORY = ("Failed to allocate memory", "Available memory of", "bad_alloc", "bad allocation")


def session_options(options: RuntimeOptions) -> ort.SessionOptions:
    """Return the settings that every session of forwardpass runs with.

    Weights stay pre-packed: without it the kernel, and with it the last bits of an answer, depends on the batch size.
    """
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.num_threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = _LOG_NOTHING
    spins = tuple(map(int, ort.__version__.split(".")[:2])) >= FIRST_TO_END_SPINNING
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if spins else "0")
    settings.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_US))
    if not options.packs_weights:
        settings.add_session_config_entry("session.disable_prepacking", "1")
    return settings


class OnnxRuntime:
    """One ONNX file in one session, which may be called from several threads at once."""

    name = "onnxruntime"
    version = ort.__version__

    def __init__(self, path: str, *, options: RuntimeOptions) -> None:
        if not Path(path).is_file():
            raise SourceNotFound(path=path, expected="an ONNX file")
        settings = session_options(options)
        if Path(path).suffix.lower() == SUFFIXES[Format.ORT]:
            for key in _MAPPED_IN_PLACE:
                settings.add_session_config_entry(key, "1")
        session = _session(path, settings, path)
        if Path(path).suffix.lower() == SUFFIXES[Format.ORT]:
            _check_layout(session, path)
        self._start(session, path)

    @classmethod
    def from_bytes(cls, model: bytes, *, options: RuntimeOptions) -> OnnxRuntime:
        """Load a model that was made in memory."""
        runtime = cls.__new__(cls)
        runtime._start(_session(model, session_options(options), "a model in memory"), "a model in memory")
        return runtime

    def _start(self, session: ort.InferenceSession, path: str) -> None:
        self._session = session
        self._signature = _signature(session, path)
        self._output_names = [spec.name for spec in self._signature.outputs]

    @property
    def signature(self) -> Signature:
        """Inputs and outputs, with the first dynamic axis that all share named `batch`."""
        return self._signature

    def run(self, tensors: Tensors) -> dict[str, Array]:
        """Run one call.

        Raises:
            MemoryError: this machine has not enough memory for it.
            TensorMismatch: a string is not UTF-8.
        """
        given = {name: _as_texts(array, name) if array.dtype == object else array for name, array in tensors.items()}
        try:
            outputs = self._session.run(self._output_names, given)
        except Exception as error:  # ONNX Runtime has no class for this, and its classes share no base but this one
            if _is_of_memory(error):
                raise MemoryError("ONNX Runtime could not allocate memory") from error
            raise
        answers = dict(zip(self._output_names, outputs, strict=True))
        return {name: as_strings(array) if array.dtype == object else array for name, array in answers.items()}


def save_optimised(source: Path, target: Path, *, level: Literal["basic", "extended"]) -> None:
    """Save the graph of `source` as ONNX Runtime optimises it.

    Raises:
        InvalidModel: the runtime cannot load it.
    """
    settings = session_options(RuntimeOptions())
    settings.graph_optimization_level = _LEVELS[level]
    settings.optimized_model_filepath = str(target)
    _session(str(source), settings, str(source))


def save_mapped(source: Path, target: Path, *, level: Literal["none", "extended"]) -> bool:
    """Save the graph of `source` with its weights in a file beside it, which a process maps and does not read.

    The second file is named after `target`, with `.data` behind. Returns whether there is one: small weights stay in
    the graph.

    Raises:
        InvalidModel: the runtime cannot load it.
    """
    settings = session_options(RuntimeOptions())
    settings.graph_optimization_level = _LEVELS[level]
    outside = _save_outside(settings, target)
    _session(str(source), settings, str(source))
    return outside.is_file() and outside.stat().st_size > 0


def save_packed(source: Path, target: Path) -> None:
    """Save the graph of `source` as it runs here, and its weights beside it as the kernels take them.

    Whoever loads the file maps the weights and lays out nothing: it is there sooner, and all processes that do so hold
    one copy together. It is for this processor and this version of ONNX Runtime, and answers the same to the last bit.

    Raises:
        InvalidModel: the runtime cannot load it, or the disk is full.
    """
    settings = session_options(RuntimeOptions())
    settings.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
    _save_outside(settings, target)
    _session(str(source), settings, str(source))


def _save_outside(settings: ort.SessionOptions, target: Path) -> Path:
    """Have a session save its graph, and its weights in a file beside that; return the path of the second."""
    outside = target.with_name(f"{target.name}.data")
    settings.optimized_model_filepath = str(target)
    settings.add_session_config_entry("session.optimized_model_external_initializers_file_name", outside.name)
    settings.add_session_config_entry(
        "session.optimized_model_external_initializers_min_size_in_bytes", str(MIN_MAPPED_BYTES)
    )
    return outside


def save_ort(source: Path, target: Path, *, for_this_processor: bool = False) -> None:
    """Write the ONNX file `source` in ONNX Runtime's own format, its graph optimised for any processor.

    With `for_this_processor`, convolutions are laid out in blocks as wide as its vectors: on one with others, the file
    must not be run.

    Raises:
        InvalidModel: the runtime cannot load it.
    """
    settings = session_options(RuntimeOptions())
    # Above this level the graph is laid out for the processor that this runs on.
    settings.graph_optimization_level = _LEVELS["all" if for_this_processor else "extended"]
    settings.optimized_model_filepath = str(target)
    settings.add_session_config_entry("session.save_model_format", "ORT")
    _session(str(source), settings, str(source))


def _check_layout(session: ort.InferenceSession, path: str) -> None:
    """Refuse a file that is laid out for another kind of processor: it would answer wrongly or not at all."""
    layout = session.get_modelmeta().custom_metadata_map.get(LAYOUT)
    if layout is not None and layout != (here := vector_layout()):
        reason = f"it is laid out for {layout}, and this is {here}"
        raise InvalidModel(path=path, reason=f"{reason}; use a variant that is not pinned, or make one here")


def _session(model: str | bytes, settings: ort.SessionOptions, path: str) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own classes share no base but this one
        reason = "there is not enough memory for it" if _is_of_memory(error) else _first_line(error)
        raise InvalidModel(path=path, reason=reason) from error


def _signature(session: ort.InferenceSession, path: str) -> Signature:
    inputs = [_spec(node, path, kind="input", at=at) for at, node in enumerate(session.get_inputs())]
    outputs = [_spec(node, path, kind="output", at=at) for at, node in enumerate(session.get_outputs())]
    first_axes = {spec.shape[0] if spec.shape else 0 for spec in inputs}
    if len(first_axes) == 1 and isinstance(leading := first_axes.pop(), str):
        inputs = [_renamed(spec, leading) for spec in inputs]
        outputs = [_renamed(spec, leading) for spec in outputs]
    return Signature(inputs=tuple(inputs), outputs=tuple(outputs))


def _spec(node: ort.NodeArg, path: str, *, kind: str, at: int) -> TensorSpec:
    if node.type not in _DTYPES:
        raise InvalidModel(path=path, reason=f"{kind} '{node.name}' has the unsupported type {node.type}")
    shape: list[Dimension] = []
    for axis, size in enumerate(node.shape):
        # An axis without a name gets one of its own; only the first one is taken to be the batch.
        fallback = BATCH_AXIS if axis == 0 else f"{kind}{at}_axis{axis}"
        shape.append(size if isinstance(size, int) else size or fallback)
    return TensorSpec(name=node.name, dtype=_DTYPES[node.type], shape=tuple(shape))


def _renamed(spec: TensorSpec, leading: str) -> TensorSpec:
    """Call the axis `leading` by its role. The names of other axes stay as the file has them."""
    shape = tuple(BATCH_AXIS if dim == leading else dim for dim in spec.shape)
    return TensorSpec(name=spec.name, dtype=np.dtype(spec.dtype).name, shape=shape)


def _as_texts(array: Array, name: str) -> Array:
    """Return strings as ONNX Runtime takes them."""
    try:
        texts = [text.decode() if isinstance(text, bytes) else text for text in array.ravel()]
    except UnicodeDecodeError as error:
        raise TensorMismatch(
            tensor=name, reason="has a string that is not UTF-8", expected="text encoded as UTF-8"
        ) from error
    return strings_array(texts, array.shape)


_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .*? failed:)?\s*")
_SAME_NAME = re.compile(r"two nodes with same node name \((.*)\)")


def _is_of_memory(error: Exception) -> bool:
    return any(words in str(error) for words in _OUT_OF_MEMORY)


def _first_line(error: Exception) -> str:
    """Return what ONNX Runtime says, without its codes and the path, which the sentence around it has."""
    told = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "Protobuf parsing failed" in told:
        return "it is not an ONNX file"
    if same := _SAME_NAME.search(told):
        return (
            f"several of its nodes have the name '{same[1]}'. Give each a name of its own, or none, such as with "
            "`for node in model.graph.node: node.name = ''` (package onnx)"
        )
    return _PREFIX.sub("", told).rstrip(".")[:300] or told[:300]
