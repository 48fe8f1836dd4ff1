"""OpenVINO's intermediate representation, from ONNX."""

from __future__ import annotations

from pathlib import Path

from forwardpass.core.tensors import Signature
from forwardpass.errors import ExportFailed, MissingExtra
from forwardpass.runtimes.signatures import encode_signature

__all__ = ["save_ir"]


def save_ir(model: Path, out: Path, signature: Signature, *, name: str) -> None:
    """Write the ONNX file `model` as `out` (`.xml`) with its weights beside it (`.bin`), in full precision.

    Raises:
        ExportFailed: OpenVINO does not know an operator.
        MissingExtra: OpenVINO is not installed.
    """
    try:
        import openvino as ov
    except ImportError as error:
        raise MissingExtra(package="openvino", extra="openvino", purpose="writing OpenVINO IR") from error
    from forwardpass.runtimes.openvino import SIGNATURE_INFO

    try:
        # Not `openvino.convert_model`, which does the same for ONNX and reports its use to the maker.
        converted = ov.Core().read_model(str(model))
        converted.set_rt_info(encode_signature(signature), list(SIGNATURE_INFO))
        ov.serialize(converted, str(out), str(out.with_suffix(".bin")))
    except Exception as error:  # OpenVINO raises RuntimeError with the lines of its C++
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        told = [line for line in lines if not line.startswith(("Exception from", "Check '"))] or ["no message"]
        raise ExportFailed(source=name, reason=f"OpenVINO does not take it ({told[-1][:200]})") from error
