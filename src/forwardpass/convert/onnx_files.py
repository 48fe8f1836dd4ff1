"""ONNX files as sources: checked before anything loads them, and folded into one file."""

from __future__ import annotations

import stat
from pathlib import Path, PurePosixPath

from forwardpass.errors import InvalidModel, MissingExtra

try:
    import onnx
    from onnx.external_data_helper import load_external_data_for_model
except ImportError as error:
    raise MissingExtra(package="onnx", extra="onnx", purpose="reading and writing ONNX files") from error

__all__ = ["copy_checked", "opset_of"]

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Operators that ONNX Runtime brings along; any other domain would need a library of somebody's code."""


def copy_checked(source: Path, target: Path) -> None:
    """Check an ONNX file and write it, with its external data inside, to `target`.

    Raises:
        InvalidModel: it is not ONNX, uses operators of another domain, or its external data leaves its folder.
    """
    model = _read(source)
    foreign = sorted({node.domain for node in model.graph.node} - DOMAINS)
    if foreign:
        raise InvalidModel(
            path=str(source), reason=f"it uses operators of the domain '{foreign[0]}', which is not known"
        )
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _check_external(source, tensor)
    try:
        load_external_data_for_model(model, str(source.parent))
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError, OSError) as error:
        raise InvalidModel(path=str(source), reason=str(error).strip().splitlines()[0]) from error
    onnx.save(model, str(target))


def opset_of(path: Path) -> int:
    """Return the version of the standard operators that a file uses."""
    versions = [
        entry.version for entry in onnx.load(str(path), load_external_data=False).opset_import if not entry.domain
    ]
    return max(versions, default=0)


def _read(source: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(str(source), load_external_data=False)
    except Exception as error:  # protobuf's decoding errors are not public
        raise InvalidModel(path=str(source), reason="it is not an ONNX file") from error
    if not model.graph.node:
        raise InvalidModel(path=str(source), reason="it is not an ONNX file, or its graph is empty")
    return model


def _check_external(source: Path, tensor: onnx.TensorProto) -> None:
    """Refuse data that lies outside the model's folder, or behind a link."""
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    pure = PurePosixPath(location)
    inside = bool(location) and not pure.is_absolute() and ".." not in pure.parts and "\\" not in location
    reason = f"the data of '{tensor.name}' is in '{location}', which is not a plain file in the model's folder"
    if not inside:
        raise InvalidModel(path=str(source), reason=reason)
    walked = source.parent
    for part in pure.parts:
        walked = walked / part
        if walked.is_symlink():
            raise InvalidModel(path=str(source), reason=reason)
    if not walked.is_file() or not stat.S_ISREG(walked.stat().st_mode) or walked.stat().st_nlink > 1:
        raise InvalidModel(path=str(source), reason=reason)
