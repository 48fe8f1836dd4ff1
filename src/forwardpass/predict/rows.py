"""Rows that would change each other's answers, run one at a time."""

from __future__ import annotations

from forwardpass.core.protocols import Runtime
from forwardpass.core.tensors import Array, Signature, Tensors, concatenate_rows

__all__ = ["RowByRow"]


class RowByRow:
    """A runtime that runs every row of a call alone, for a variant whose rows interfere.

    Requests of other people are kept apart by the batcher; this keeps apart the rows of one request, so that the answer
    for a text does not depend on which other texts were asked about along with it.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.name = runtime.name
        self.version = runtime.version

    @property
    def signature(self) -> Signature:
        """The signature of the runtime underneath."""
        return self._runtime.signature

    def run(self, tensors: Tensors) -> dict[str, Array]:
        """Run one call per row and stack the answers."""
        num_rows = len(next(iter(tensors.values())))
        rows = ({name: array[row : row + 1] for name, array in tensors.items()} for row in range(num_rows))
        return concatenate_rows([self._runtime.run(row) for row in rows])
