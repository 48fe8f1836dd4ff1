"""ExecuTorch, PyTorch's runtime for devices, on the processor."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from forwardpass.core.tensors import (
    BATCH_AXIS,
    Array,
    Dimension,
    Signature,
    Tensors,
    TensorSpec,
    concatenate_rows,
)
from forwardpass.errors import InvalidModel, MissingExtra, SourceNotFound, TensorMismatch
from forwardpass.runtimes.options import RuntimeOptions
from forwardpass.runtimes.signatures import decode_signature

try:
    import torch

    # Not `executorch.runtime`, which wraps these calls and imports the whole exporter on the way: eight seconds.
    from executorch.extension.pybindings import _C as bindings
except ImportError as error:
    raise MissingExtra(package="executorch", extra="executorch", purpose="running ExecuTorch files") from error

__all__ = ["SIGNATURE_METHOD", "ExecutorchRuntime"]

SIGNATURE_METHOD = "forwardpass_signature"
"""A method without inputs that returns the signature as JSON in bytes: a .pte file has no place for other things."""
_METHOD = "forward"


class ExecutorchRuntime:
    """A .pte file. Its memory was planned for a greatest size of every axis when it was written.

    A call with more rows than that is run in parts where rows can be told apart; any other size beyond it is refused.
    """

    name = "executorch"
    version = version("executorch")

    def __init__(self, path: str, *, options: RuntimeOptions) -> None:
        if not Path(path).is_file():
            raise SourceNotFound(path=path, expected="an ExecuTorch file (.pte)")
        try:
            with _silent():
                bindings._unsafe_reset_threadpool(options.num_threads)
                self._content = Path(path).read_bytes()  # the program points into it
                self._program = bindings._load_program_from_buffer(
                    self._content, program_verification=bindings.Verification.InternalConsistency
                )
                self._method = self._program.load_method(_METHOD)
                stored = _stored(self._program)
        except Exception as error:  # RuntimeError with a number of its C++
            line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise InvalidModel(path=path, reason=f"ExecuTorch cannot load it ({line[:200]})") from error
        planned = self._method.method_meta()
        self._signature = stored or _declared(planned, path)
        _check_number(self._signature, planned, path)
        self._limits = _limits(self._signature, planned)

    @property
    def signature(self) -> Signature:
        """Inputs and outputs, with the names that the file carries, or without them of fixed sizes."""
        return self._signature

    @property
    def limits(self) -> dict[str, int]:
        """The greatest size of each dynamic axis of the inputs, for which the file's memory is planned."""
        return dict(self._limits)

    def run(self, tensors: Tensors) -> dict[str, Array]:
        """Run one call.

        Raises:
            TensorMismatch: an axis is longer than the file's memory is planned for.
        """
        self._check_sizes(tensors)
        num_rows = len(next(iter(tensors.values()))) if self._signature.is_batchable else 0
        at_most = self._limits.get(BATCH_AXIS, num_rows)
        if num_rows <= at_most:
            return self._call(tensors)
        parts = [
            self._call({name: array[start : start + at_most] for name, array in tensors.items()})
            for start in range(0, num_rows, at_most)
        ]
        return concatenate_rows(parts)

    def _call(self, tensors: Tensors) -> dict[str, Array]:
        given = [torch.from_numpy(np.ascontiguousarray(tensors[spec.name])) for spec in self._signature.inputs]
        answers = self._method(given)
        return {spec.name: answer.numpy() for spec, answer in zip(self._signature.outputs, answers, strict=True)}

    def _check_sizes(self, tensors: Tensors) -> None:
        for spec in self._signature.inputs:
            for axis, (dim, size) in enumerate(zip(spec.shape, tensors[spec.name].shape, strict=True)):
                limit = self._limits.get(dim, size) if isinstance(dim, str) else dim
                is_split = dim == BATCH_AXIS and self._signature.is_batchable
                if size > limit and not is_split:
                    raise TensorMismatch(
                        tensor=spec.name,
                        reason=f"has {size} along axis {axis} ({dim})",
                        expected=f"at most {limit}, for which the memory of this ExecuTorch file is planned",
                    )


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Lead what ExecuTorch's C++ logs about the processor elsewhere: it writes to the descriptor itself."""
    sys.stderr.flush()
    stderr = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def _stored(program: Any) -> Signature | None:
    names = {program.get_method_name(number) for number in range(program.num_methods())}
    if SIGNATURE_METHOD not in names:
        return None
    (text,) = program.load_method(SIGNATURE_METHOD)([])
    return decode_signature(text.numpy().tobytes()) if isinstance(text, torch.Tensor) else None


def _declared(planned: Any, path: str) -> Signature:
    """Describe a file of somebody else's: it names nothing, and says of sizes only how great they may be."""
    try:
        return Signature(
            inputs=tuple(
                _spec(planned.input_tensor_meta(at), f"input_{at}", path) for at in range(planned.num_inputs())
            ),
            outputs=tuple(
                _spec(planned.output_tensor_meta(at), f"output_{at}", path) for at in range(planned.num_outputs())
            ),
        )
    except RuntimeError as error:
        raise InvalidModel(path=path, reason="it takes or returns something else than tensors") from error


def _spec(planned: Any, name: str, path: str) -> TensorSpec:
    dtype = _DTYPES.get(planned.dtype())
    if dtype is None:
        raise InvalidModel(path=path, reason=f"'{name}' has a type that numpy does not know")
    return TensorSpec(name=name, dtype=dtype, shape=tuple(map(int, planned.sizes())))


_DTYPES = {
    0: "uint8",
    1: "int8",
    2: "int16",
    3: "int32",
    4: "int64",
    5: "float16",
    6: "float32",
    7: "float64",
    11: "bool",
}
"""By the numbers of PyTorch's ScalarType."""


def _check_number(signature: Signature, planned: Any, path: str) -> None:
    found = planned.num_inputs(), planned.num_outputs()
    if (len(signature.inputs), len(signature.outputs)) != found:
        reason = f"its signature names other tensors than its {found[0]} inputs and {found[1]} outputs"
        raise InvalidModel(path=path, reason=reason)


def _limits(signature: Signature, planned: Any) -> dict[str, int]:
    limits: dict[str, int] = {}
    for at, spec in enumerate(signature.inputs):
        sizes: tuple[int, ...] = tuple(planned.input_tensor_meta(at).sizes())
        dims: tuple[Dimension, ...] = spec.shape
        for dim, size in zip(dims, sizes, strict=True):
            if isinstance(dim, str):
                limits[dim] = min(size, limits.get(dim, size))
    return limits
