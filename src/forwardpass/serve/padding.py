"""Puts requests into one batch and takes their answers out again, with padding where shapes or sizes differ.

Rows are padded with copies of the last one, which is a valid input whatever the model does. Shapes are padded with
zeros (strings: with empty ones) along the axes for which the bundle's evidence says that this changes no answer.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING

from forwardpass.core.batch_sizes import copies_of_last_row
from forwardpass.core.batching import Batch
from forwardpass.core.strings import blank
from forwardpass.core.tensors import BATCH_AXIS, Array, Signature, Tensors, TensorSpec

if TYPE_CHECKING:
    from forwardpass.serve.request import Request

__all__ = ["ShapePadding"]


class ShapePadding:
    """Stacks tensors for one signature; `axes` are the dynamic axes that may be padded with zeros."""

    def __init__(self, signature: Signature, axes: Sequence[str] = ()) -> None:
        self._signature = signature
        self._axes = frozenset(axes) - {BATCH_AXIS}
        self._is_batchable = signature.is_batchable  # which takes a microsecond to find out

    def family(self, tensors: Tensors) -> Hashable:
        """Return what requests have in common that can be padded to one shape; None where nothing is ever padded."""
        if not self._axes:
            return None
        return tuple(
            tuple(
                size
                for size, dim in zip(tensors[spec.name].shape[1:], spec.shape[1:], strict=True)
                if dim not in self._axes
            )
            for spec in self._signature.inputs
        )

    def stack(self, requests: Sequence[Request], num_rows: int) -> Iterator[tuple[str, list[Array]]]:
        """Return every input as parts of equal shape that together have `num_rows` rows."""
        num_missing = num_rows - sum(request.num_rows for request in requests) if self._is_batchable else 0
        for spec in self._signature.inputs:
            parts = [request.tensors[spec.name] for request in requests]
            if self._axes:
                parts = _padded(parts)
            if num_missing > 0:
                parts.append(copies_of_last_row(parts[-1], num_missing))
            yield spec.name, parts

    def part(self, outputs: Tensors, start: int, request: Request, batch: Batch) -> dict[str, Array]:
        """Return the rows of one request, cut back to its own shape."""
        rows = {name: array[start : start + request.num_rows] for name, array in outputs.items()}
        if not self._axes or request.row_size == batch.row_size:
            return rows
        sizes = self._sizes(request.tensors)
        return {spec.name: _cut(rows[spec.name], spec, sizes) for spec in self._signature.outputs}

    def _sizes(self, tensors: Tensors) -> dict[str, int]:
        """Return how long the padded axes of a request are."""
        return {
            dim: size
            for spec in self._signature.inputs
            for dim, size in zip(spec.shape, tensors[spec.name].shape, strict=True)
            if isinstance(dim, str) and dim in self._axes
        }


def _padded(parts: list[Array]) -> list[Array]:
    """Pad every part with zeros to the largest shape, the first axis apart."""
    shape = tuple(max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True))
    return [part if part.shape[1:] == shape else _grown(part, shape) for part in parts]


def _grown(part: Array, shape: tuple[int, ...]) -> Array:
    grown = blank((len(part), *shape), part.dtype)
    grown[tuple(slice(size) for size in part.shape)] = part
    return grown


def _cut(rows: Array, spec: TensorSpec, sizes: dict[str, int]) -> Array:
    return rows[
        tuple(slice(sizes[dim]) if isinstance(dim, str) and dim in sizes else slice(None) for dim in spec.shape)
    ]
