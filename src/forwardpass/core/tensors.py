"""What goes in and what comes out: tensor specifications, signatures and their validation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from forwardpass.errors import TensorMismatch

__all__ = ["BATCH_AXIS", "Array", "Dimension", "Signature", "TensorSpec", "Tensors", "concatenate_rows", "misfit"]

Array: TypeAlias = NDArray[Any]
Tensors: TypeAlias = Mapping[str, Array]
Dimension: TypeAlias = int | str
"""A fixed size, or the name of a dynamic axis. Axes of the same name have the same size within one call."""

BATCH_AXIS = "batch"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """Name, dtype and shape of one input or output.

    `dtype` is numpy's name for it (`float32`, `int64`, `bool`); `shape` holds sizes and names of dynamic axes.
    """

    name: str
    dtype: str
    shape: tuple[Dimension, ...]

    def __str__(self) -> str:
        dtype = "string" if self.dtype == "object" else self.dtype  # NumPy's word for text says nothing to a reader
        return f"{dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """The inputs and outputs of a model.

    A model can run several requests at once if the first axis of every input and output is the dynamic axis
    `batch`; otherwise `is_batchable` is false and every call is one row.

    >>> pixels = TensorSpec(name="pixels", dtype="float32", shape=("batch", 64))
    >>> scores = TensorSpec(name="scores", dtype="float32", shape=("batch", 10))
    >>> Signature(inputs=(pixels,), outputs=(scores,)).validate({"pixels": np.zeros((3, 64), np.float32)})
    3
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def is_batchable(self) -> bool:
        """Whether requests can be stacked along the first axis of every input and output."""
        specs = (*self.inputs, *self.outputs)
        return bool(self.inputs) and all(spec.shape[:1] == (BATCH_AXIS,) for spec in specs)

    @property
    def dynamic_axes(self) -> tuple[str, ...]:
        """Names of the dynamic axes of the inputs, the batch axis first, then in order of appearance."""
        names = dict.fromkeys(dim for spec in self.inputs for dim in spec.shape if isinstance(dim, str))
        return tuple(sorted(names, key=lambda name: name != BATCH_AXIS))

    def validate(self, tensors: Tensors) -> int:
        """Check `tensors` against the inputs and return the number of rows.

        Raises:
            TensorMismatch: a name is missing or unknown, or a dtype, rank or size does not fit.
        """
        specs = {spec.name: spec for spec in self.inputs}
        for name in tensors:
            if name not in specs:
                raise TensorMismatch(
                    tensor=name,
                    reason="is not an input of this model",
                    expected=f"the inputs {', '.join(specs)}",
                )
        sizes: dict[str, int] = {}
        for name, spec in specs.items():
            if name not in tensors:
                raise TensorMismatch(tensor=name, reason="is missing", expected=str(spec))
            _check(tensors[name], spec, sizes)
        return sizes[BATCH_AXIS] if self.is_batchable else 1

    def shape_key(self, tensors: Tensors) -> tuple[tuple[int, ...], ...]:
        """Return the sizes behind the batch axis: requests with equal keys can be stacked."""
        return tuple(tensors[spec.name].shape[1:] for spec in self.inputs)


def concatenate_rows(parts: list[dict[str, Array]]) -> dict[str, Array]:
    """Stack requests along the batch axis; all parts have the same names and the same sizes behind it."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def misfit(given: TensorSpec, wanted: TensorSpec) -> str:
    """Return why a tensor cannot be this input; empty if it can be, at least for some sizes of dynamic axes.

    >>> three, any_size = (TensorSpec(name="x", dtype="int64", shape=("batch", size)) for size in (3, "size"))
    >>> misfit(any_size, three), misfit(three, TensorSpec(name="y", dtype="int64", shape=("batch", 4)))
    ('', 'axis 1 differs')
    """
    if given.dtype != wanted.dtype:
        return "the dtypes differ"
    if len(given.shape) != len(wanted.shape):
        return f"{len(given.shape)} axes are not {len(wanted.shape)}"
    for axis, (size, expected) in enumerate(zip(given.shape, wanted.shape, strict=True)):
        if isinstance(size, int) and isinstance(expected, int) and size != expected:
            return f"axis {axis} differs"
        if axis == 0 and size == BATCH_AXIS and isinstance(expected, int):
            return f"it takes {expected} row{'s' if expected > 1 else ''} at a time, not any number"
    return ""


def _check(array: Array, spec: TensorSpec, sizes: dict[str, int]) -> None:
    """Compare one array with its specification; `sizes` collects what each dynamic axis measures in this call."""
    if array.dtype != spec.dtype:  # numpy compares with a name fast; making the name of a dtype is slow
        raise TensorMismatch(tensor=spec.name, reason=f"has dtype {array.dtype.name}", expected=str(spec))
    if array.ndim != len(spec.shape):
        raise TensorMismatch(tensor=spec.name, reason=f"has shape {list(array.shape)}", expected=str(spec))
    for axis, (size, expected) in enumerate(zip(array.shape, spec.shape, strict=True)):
        if isinstance(expected, int):
            if size != expected:
                raise TensorMismatch(tensor=spec.name, reason=f"has shape {list(array.shape)}", expected=str(spec))
        elif size < 1:
            raise TensorMismatch(
                tensor=spec.name,
                reason=f"is empty along axis {axis} ({expected})",
                expected="at least one element",
            )
        elif sizes.setdefault(expected, size) != size:
            raise TensorMismatch(
                tensor=spec.name,
                reason=f"has {size} along axis {axis} ({expected})",
                expected=f"{sizes[expected]}, as in the inputs before it",
            )
