"""Which value inside of a model is the first that another form of it does not have: decided on arrays alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from forwardpass.core.tensors import Array
from forwardpass.predict import relative_error

__all__ = ["InnerValue", "first_different", "first_without_counterpart", "has_counterpart"]

MAX_PERMUTED_AXES = 5
"""More have too many orders to try."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InnerValue:
    """What one node has computed: `node` is how it is told, `inputs` are the names of what it was computed from."""

    name: str
    node: str
    inputs: tuple[str, ...]
    array: Array


def first_different(values: Iterable[InnerValue], found: Mapping[str, Array], *, tolerance: float) -> str:
    """Name the first node whose value is called the same in the other form and is further off; empty if none is."""
    for value in values:
        answer = found.get(value.name)
        if answer is None or answer.shape != value.array.shape:
            continue
        if relative_error(answer, value.array) > tolerance:
            return value.node
    return ""


def first_without_counterpart(
    values: Sequence[InnerValue], inputs: Iterable[str], found: Sequence[Array], *, tolerance: float
) -> str:
    """Name the first node whose value is nowhere in the other form, nor is anything that is computed from it.

    For forms that keep no names, fuse nodes and lay axes out anew: a value that is missing but leads to one that is
    there was fused away. `values` are in the order of computing; what does not depend on `inputs` is a constant.
    """
    depends = set(inputs)
    candidates = []
    for value in values:
        if depends.intersection(value.inputs):
            depends.add(value.name)
            if value.array.dtype.kind == "f" and _tells(value.array):
                candidates.append(value)
    good: set[str] = set()
    for value in reversed(values):
        if value.name in good or has_counterpart(value.array, found, tolerance=tolerance):
            good.update((value.name, *value.inputs))
    return next((value.node for value in candidates if value.name not in good), "")


def has_counterpart(array: Array, found: Sequence[Array], *, tolerance: float) -> bool:
    """Tell whether one of the arrays holds the same numbers, perhaps with its axes in another order or merged."""
    if array.dtype.kind != "f" or not _tells(array):
        return False
    norm = float(np.linalg.norm(array))
    same_size = [
        other
        for other in found
        if other.size == array.size and abs(float(np.linalg.norm(other)) - norm) <= tolerance * norm
    ]
    if not same_size:
        return False
    orders = permutations(range(array.ndim)) if array.ndim <= MAX_PERMUTED_AXES else [tuple(range(array.ndim))]
    seen = (np.ascontiguousarray(array.transpose(order)).ravel() for order in orders)
    return any(relative_error(other.ravel(), flat) <= tolerance for flat in seen for other in same_size)


def _tells(array: Array) -> bool:
    """Say whether an array has more than one value: zeros are found everywhere."""
    return array.size > 1 and bool(np.isfinite(array).all()) and float(array.min()) != float(array.max())
