"""Runtimes that also answer with the tensors within a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from forwardpass.errors import InvalidModel
from forwardpass.optimize.library import onnx
from forwardpass.optimize.naming import load_named, load_structure
from forwardpass.runtimes import RuntimeOptions
from forwardpass.runtimes.onnx import OnnxRuntime

__all__ = ["Exposer", "exposing"]


def exposing(model: onnx.ModelProto, names: Iterable[str]) -> OnnxRuntime:
    """Return a runtime of a model in memory that also answers with the tensors `names`."""
    return _with_outputs(model.SerializeToString(), model, names)


@dataclass(slots=True, eq=False)
class Exposer:
    """Gives runtimes of files that also answer with tensors within: the one of before, if it does."""

    _source: Path | None = None
    _names: frozenset[str] = frozenset()
    _runtime: OnnxRuntime | None = None

    def expose(self, source: Path, names: Sequence[str]) -> OnnxRuntime:
        """Return a runtime of the file that also answers with the tensors `names`, and maybe with others."""
        if self._runtime is None or self._source != source or not self._names.issuperset(names):
            self.clear()  # first: the memory of one is enough
            try:
                self._runtime = _with_outputs(source.read_bytes(), load_structure(source), names)
            except InvalidModel:  # its nodes share names, which ONNX Runtime refuses
                self._runtime = exposing(load_named(source), names)
            self._source, self._names = source, frozenset(names)
        return self._runtime

    def clear(self) -> None:
        """Let the runtime go."""
        self._source, self._names, self._runtime = None, frozenset(), None


def _with_outputs(model: bytes, structure: onnx.ModelProto, names: Iterable[str]) -> OnnxRuntime:
    """Load a model with more outputs. They are put behind its bytes: protobuf joins the lists of two messages in a row,
    and no weight is copied to add a name.
    """
    present = {value.name for value in (*structure.graph.output, *structure.graph.input)}
    more = onnx.ModelProto()
    more.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in present)
    return OnnxRuntime.from_bytes(model + more.SerializeToString(), options=RuntimeOptions())
