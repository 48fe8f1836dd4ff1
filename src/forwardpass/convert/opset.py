"""Another version of the operator set: given as asked, or refused with the operator that stands in the way.

Whether a rewritten model still answers the same is not decided here: the grid of shapes is run on what comes out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from forwardpass.convert.graphs import STANDARD_DOMAINS, all_nodes, opset_of
from forwardpass.convert.library import onnx
from forwardpass.errors import InvalidModel, InvalidOption, OpsetUnavailable
from forwardpass.runtimes import RuntimeOptions
from forwardpass.runtimes.onnx import OnnxRuntime

__all__ = ["check_known", "set_opset"]

_OLDEST = 7
"""Of those before, onnx's converter and ONNX Runtime know too little."""

_OPERATOR = re.compile(r"(?:for|of|for op) (?P<operator>[A-Z]\w+)")
"""How onnx's converter names what it stumbles on: `No Adapter From Version $14 for Relu`."""


def check_known(opset: int) -> None:
    """Raise `InvalidOption` for a version of the operators that the installed libraries do not know."""
    newest = onnx.defs.onnx_opset_version()
    if not _OLDEST <= opset <= newest:
        expected = f"{_OLDEST} to {newest}, which the installed onnx {onnx.__version__} knows"
        raise InvalidOption(option="--opset", value=str(opset), expected=expected)


def set_opset(path: Path, opset: int, *, name: str) -> None:
    """Rewrite the ONNX file at `path` in another version of the standard operators.

    Raises:
        InvalidOption: the installed onnx does not know the version.
        OpsetUnavailable: an operator of the model does not exist in that version, or cannot be expressed in it.
    """
    model = onnx.load(str(path))
    found = opset_of(model)
    if found == opset:
        return
    _check_operators_exist(model, opset, name)
    onnx.save(_rewritten(model, opset, name), str(path))
    try:
        OnnxRuntime(str(path), options=RuntimeOptions())
    except InvalidModel as error:
        reason = f"ONNX Runtime does not load the result ({error.reason})"
        raise OpsetUnavailable(source=name, opset=opset, found=found, reason=reason) from error


def _check_operators_exist(model: onnx.ModelProto, opset: int, name: str) -> None:
    """Refuse a version that is older than one of the model's operators."""
    births = {(node.op_type, _birth(node.op_type)) for node in _standard_nodes(model)}
    operator, birth = max(births, key=lambda pair: (pair[1], pair[0]), default=("", 0))
    if birth > opset:
        reason = f"the operator '{operator}' exists since opset {birth}"
        hint = f"Re-run with --opset {birth} or newer."
        raise OpsetUnavailable(source=name, opset=opset, found=opset_of(model), reason=reason, hint=hint)


def _rewritten(model: onnx.ModelProto, opset: int, name: str) -> onnx.ModelProto:
    """Let onnx's converter rewrite the model; where it knows no way, see whether a new label is enough.

    It often knows none although nothing has to change: Relu 14 is Relu 13 for more types.
    """
    failure = ""
    for rewrite in (onnx.version_converter.convert_version, _relabelled):
        try:
            candidate = rewrite(model, opset)
            _drop_newer_defaults(candidate, opset_of(model), opset)
            onnx.checker.check_model(candidate)
        except (RuntimeError, onnx.checker.ValidationError) as error:
            failure = failure or str(error)
        else:
            return candidate
    operator = _OPERATOR.search(failure)
    reason = f"onnx knows no way back for the operator '{operator['operator']}'" if operator else _first_line(failure)
    raise OpsetUnavailable(source=name, opset=opset, found=opset_of(model), reason=reason)


def _relabelled(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    candidate = onnx.ModelProto()
    candidate.CopyFrom(model)
    for entry in candidate.opset_import:
        if entry.domain in STANDARD_DOMAINS:
            entry.version = opset
    return candidate


def _drop_newer_defaults(model: onnx.ModelProto, found: int, opset: int) -> None:
    """Remove attributes that the older operator does not have and that only say what it does anyway."""
    for node in _standard_nodes(model):
        known = onnx.defs.get_schema(node.op_type, opset, "").attributes
        newer = onnx.defs.get_schema(node.op_type, max(found, opset), "").attributes
        for attribute in list(node.attribute):
            schema = newer.get(attribute.name)
            if attribute.name not in known and schema is not None and _value(schema.default_value) == _value(attribute):
                node.attribute.remove(attribute)


def _value(attribute: onnx.AttributeProto) -> object:
    return onnx.helper.get_attribute_value(attribute) if attribute.type else None


def _standard_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    return (node for node in all_nodes(model) if node.domain in STANDARD_DOMAINS)


def _birth(operator: str) -> int:
    """Return the first version of the standard operators that has this one."""
    history = (schema for schema in onnx.defs.get_all_schemas_with_history() if schema.name == operator)
    return min((schema.since_version for schema in history if schema.domain in STANDARD_DOMAINS), default=0)


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "onnx's converter failed")[:300]
