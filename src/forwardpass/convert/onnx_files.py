"""ONNX files as sources: checked before anything loads them, and folded into one file."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path, PurePosixPath

from forwardpass.convert.graphs import STANDARD_DOMAINS, all_nodes, all_tensors, opset_of
from forwardpass.convert.library import onnx
from forwardpass.errors import InvalidModel, SourceNotFound

__all__ = ["read_opset", "write_checked"]

DOMAINS = frozenset({*STANDARD_DOMAINS, "ai.onnx.ml", "com.microsoft"})
"""Operators that ONNX Runtime brings along; any other domain would need a library of somebody's code."""


def write_checked(source: Path, target: Path) -> None:
    """Check an ONNX file and write it, with its external data inside and its local functions inlined, to `target`.

    Raises:
        SourceNotFound: there is no such file.
        InvalidModel: it is not ONNX, uses operators of another domain, or its external data leaves its folder.
    """
    given = _read(source)
    model = _inlined(given, source)
    _check_domains(model, source)
    outside = [tensor for tensor in all_tensors(model) if tensor.data_location == onnx.TensorProto.EXTERNAL]
    for tensor in outside:
        _check_external(source, tensor)
    from onnx.external_data_helper import load_external_data_for_model

    try:
        load_external_data_for_model(model, str(source.parent))
    except (onnx.checker.ValidationError, ValueError, OSError) as error:
        raise _invalid(source, error) from error
    if model is given and not outside:
        shutil.copyfile(source, target)
    else:
        onnx.save(model, str(target))
    try:
        onnx.checker.check_model(str(target))  # the file, not the object, which it would write once more
    except (onnx.checker.ValidationError, ValueError) as error:
        raise _invalid(source, error) from error


def read_opset(path: Path) -> int:
    """Return the version of the standard operators that a file uses."""
    return opset_of(onnx.load(str(path), load_external_data=False))


def _invalid(source: Path, error: Exception) -> InvalidModel:
    return InvalidModel(path=str(source), reason=str(error).strip().splitlines()[0])


def _read(source: Path) -> onnx.ModelProto:
    if not source.is_file():
        raise SourceNotFound(path=str(source), expected="an ONNX file")
    try:
        model = onnx.load(str(source), load_external_data=False)
    except Exception as error:  # protobuf's decoding errors are not public
        raise InvalidModel(path=str(source), reason="it is not an ONNX file") from error
    if not model.graph.node:
        raise InvalidModel(path=str(source), reason="it is not an ONNX file, or its graph is empty")
    return model


def _inlined(model: onnx.ModelProto, source: Path) -> onnx.ModelProto:
    """Put the bodies of local functions where they are called: everything behind sees plain operators.

    What is in them is checked afterwards like the rest. A function that calls itself cannot be inlined.
    """
    if not model.functions:
        return model
    from onnx.inliner import inline_local_functions

    try:
        return inline_local_functions(model, convert_version=True)
    except Exception as error:  # the inliner raises whatever its C++ does
        reason = f"its local functions cannot be inlined ({str(error).strip().splitlines()[0][:200]})"
        raise InvalidModel(path=str(source), reason=reason) from error


def _check_domains(model: onnx.ModelProto, source: Path) -> None:
    """Refuse operators of strange libraries, wherever they are: in the graph, in a branch, in a loop or a function."""
    local = {(function.domain, function.name) for function in model.functions}
    strange = sorted(
        {
            node.domain
            for node in all_nodes(model)
            if node.domain not in DOMAINS and (node.domain, node.op_type) not in local
        }
    )
    if strange:
        reason = f"it uses operators of the domain '{strange[0]}', which is not known"
        raise InvalidModel(path=str(source), reason=reason)


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
