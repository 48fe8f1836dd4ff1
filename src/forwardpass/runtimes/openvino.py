"""OpenVINO on the processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from forwardpass.core.tensors import BATCH_AXIS, Array, Dimension, Signature, Tensors, TensorSpec
from forwardpass.errors import InvalidModel, MissingExtra, SourceNotFound
from forwardpass.runtimes.options import RuntimeOptions
from forwardpass.runtimes.signatures import decode_signature

try:
    import openvino as ov
except ImportError as error:
    raise MissingExtra(package="openvino", extra="openvino", purpose="running OpenVINO IR") from error

__all__ = ["SIGNATURE_INFO", "OpenvinoRuntime"]

SIGNATURE_INFO = ("forwardpass", "signature")
"""Where in the IR's runtime information the signature is: the IR itself drops the names of dynamic axes."""


class OpenvinoRuntime:
    """An OpenVINO IR (`.xml` with its `.bin`), computed in the precision of the file.

    OpenVINO's own defaults may compute in bfloat16 and quantise activations on the fly, by the processor that it finds:
    the same file would answer differently from machine to machine. Both are off.
    """

    name = "openvino"
    version = str(ov.__version__).partition("-")[0]

    def __init__(self, path: str, *, options: RuntimeOptions) -> None:
        _check_files(path)
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "EXECUTION_MODE_HINT": "ACCURACY",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
            "INFERENCE_NUM_THREADS": str(options.num_threads),
            "NUM_STREAMS": "1",
        }
        try:
            core = ov.Core()
            model = core.read_model(path)
            self._compiled = core.compile_model(model, "CPU", settings)
            self._request = self._compiled.create_infer_request()
        except Exception as error:  # OpenVINO raises RuntimeError with the lines of its C++
            raise InvalidModel(path=path, reason=_reason(error)) from error
        self._signature = _stored(model) or _declared(model, path)

    @property
    def signature(self) -> Signature:
        """Inputs and outputs, with the first dynamic axis that all share named `batch`."""
        return self._signature

    def run(self, tensors: Tensors) -> dict[str, Array]:
        """Run one call."""
        given = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
        self._request.infer(given)
        return {
            spec.name: np.array(self._request.get_output_tensor(at).data)  # a copy: the next call writes over it
            for at, spec in enumerate(self._signature.outputs)
        }


def _check_files(path: str) -> None:
    if not Path(path).is_file():
        raise SourceNotFound(path=path, expected="an OpenVINO IR (.xml)")
    weights = Path(path).with_suffix(".bin")
    if not weights.is_file():
        raise SourceNotFound(path=str(weights), expected=f"the weights of '{Path(path).name}' beside it")


def _stored(model: Any) -> Signature | None:
    path = list(SIGNATURE_INFO)
    return decode_signature(str(model.get_rt_info(path).value)) if model.has_rt_info(path) else None


def _declared(model: Any, path: str) -> Signature:
    return Signature(
        inputs=tuple(_spec(port, path, f"input{at}") for at, port in enumerate(model.inputs)),
        outputs=tuple(_spec(port, path, f"output{at}") for at, port in enumerate(model.outputs)),
    )


def _spec(port: Any, path: str, fallback: str) -> TensorSpec:
    try:
        dtype = np.dtype(port.get_element_type().to_dtype()).name
    except Exception as error:
        raise InvalidModel(path=path, reason=f"{fallback} has a type that numpy does not know") from error
    if port.get_partial_shape().rank.is_dynamic:
        raise InvalidModel(path=path, reason=f"{fallback} has an unknown number of axes")
    shape: list[Dimension] = [
        BATCH_AXIS if dim.is_dynamic and axis == 0 else f"{fallback}_axis{axis}" if dim.is_dynamic else dim.get_length()
        for axis, dim in enumerate(port.get_partial_shape())
    ]
    name = port.get_any_name() if port.get_names() else fallback
    return TensorSpec(name=name, dtype=dtype, shape=tuple(shape))


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (told or lines or [type(error).__name__])[0][:300]
