"""Rows that have to be run in other numbers than they come: one at a time, or as many as a model needs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from forwardpass.core.batch_sizes import copies_of_last_row, padded_rows
from forwardpass.core.protocols import Runtime
from forwardpass.core.tensors import Array, Signature, Tensors, concatenate_rows

__all__ = ["InExactBatches", "InFixedBatches", "RowByRow"]


class _OnTop:
    """A runtime on top of another, whose name and signature it has."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.name = runtime.name
        self.version = runtime.version

    @property
    def signature(self) -> Signature:
        """The signature of the runtime underneath."""
        return self._runtime.signature


class RowByRow(_OnTop):
    """A runtime that runs every row of a call alone, for a variant whose rows interfere.

    Requests of other people are kept apart by the batcher; this keeps apart the rows of one request, so that the answer
    for a text does not depend on which other texts were asked about along with it.
    """

    def run(self, tensors: Tensors) -> dict[str, Array]:
        """Run one call per row and stack the answers."""
        num_rows = len(next(iter(tensors.values())))
        rows = ({name: array[row : row + 1] for name, array in tensors.items()} for row in range(num_rows))
        return concatenate_rows([self._runtime.run(row) for row in rows])


class InFixedBatches(_OnTop):
    """A runtime that takes any number of rows to a model whose batch is a fixed number.

    The last batch is filled up with rows from the start, whose answers are dropped.
    """

    def __init__(self, runtime: Runtime, *, num_rows: int) -> None:
        super().__init__(runtime)
        self._num_rows = num_rows

    def run(self, tensors: Tensors) -> dict[str, Array]:
        """Run as many batches as it takes and stack the answers."""
        total = len(next(iter(tensors.values())))
        starts = range(0, total, self._num_rows)
        rows = [np.arange(start, start + self._num_rows) % total for start in starts]
        parts = [self._runtime.run({name: array[at] for name, array in tensors.items()}) for at in rows]
        return {name: array[:total] for name, array in concatenate_rows(parts).items()}


class InExactBatches(_OnTop):
    """A runtime that runs batches of certain sizes only, for a variant whose last bits depend on the size.

    It divides and pads the rows of a call as the server does those of a request.
    """

    def __init__(self, runtime: Runtime, *, batch_sizes: Sequence[int], max_rows: int) -> None:
        super().__init__(runtime)
        self._batch_sizes = batch_sizes
        self._max_rows = max_rows

    def run(self, tensors: Tensors) -> dict[str, Array]:
        """Run as many batches as it takes and stack the answers."""
        total = len(next(iter(tensors.values())))
        starts = range(0, total, self._max_rows)
        return concatenate_rows(
            [
                self._run({name: array[start : start + self._max_rows] for name, array in tensors.items()})
                for start in starts
            ]
        )

    def _run(self, tensors: Tensors) -> dict[str, Array]:
        num_rows = len(next(iter(tensors.values())))
        num_missing = padded_rows(num_rows, self._batch_sizes) - num_rows
        if not num_missing:
            return self._runtime.run(tensors)
        filled = {
            name: np.concatenate([array, copies_of_last_row(array, num_missing)]) for name, array in tensors.items()
        }
        return {name: array[:num_rows] for name, array in self._runtime.run(filled).items()}
