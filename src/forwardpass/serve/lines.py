"""What the dispatcher asks of requests that wait outside of its queue, in native code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from forwardpass.serve.channel import Arena, Done, Placed
from forwardpass.serve.metrics import ModelMetrics
from forwardpass.serve.request import Request

__all__ = ["Line", "LineBatch"]


class LineBatch(Protocol):
    """Requests of a line that run together; how they are answered is the line's business."""

    def __len__(self) -> int:
        """Return how many they are."""

    @property
    def num_rows(self) -> int:
        """Of the requests."""

    @property
    def num_padded(self) -> int:
        """With which it runs."""

    @property
    def closed(self) -> str:
        """Why it was closed, as in `Closed`."""


class Line(Protocol):
    """Requests that wait outside of the queue, in native code, and run in batches of their own."""

    row_size: int

    def __len__(self) -> int:
        """How many wait."""

    @property
    def backlog_s(self) -> float:
        """How long they will keep the workers busy."""

    @property
    def num_waiting_rows(self) -> int:
        """Rows of all that wait."""

    def note(
        self, *, is_open: bool, busy_until_s: float, rows_ahead: int, rows_elsewhere: int, max_batch_rows: int
    ) -> None:
        """Take over what the line has to know to take a request in: if it may, and what there is beside it."""

    def learn(self, curve: tuple[Sequence[float], Sequence[float]]) -> None:
        """Take over what is known of the latency."""

    def next_batch(self, now_s: float, num_free: int) -> LineBatch | None:
        """Return what one of so many free workers runs now; those that cannot be in time get their answer."""

    def place(self, batch: Any, arena: Arena) -> tuple[Placed, ...]:
        """Write the rows of a batch into the arena."""

    def answer(self, batch: Any, arena: Arena, message: Done, *, started_s: float) -> bool:
        """Answer every request of a batch that has run; return False, and do nothing, if the outputs are unexpected."""

    def release(self, batch: Any) -> list[Request]:
        """Return what has to be run again, as requests."""

    def drain(self) -> list[Request]:
        """Take out everything that waits, as requests."""

    def expire(self, now_s: float, batches: Sequence[Any]) -> float | None:
        """Answer those whose deadline has passed, waiting or running; return the next deadline."""

    def close(self) -> None:
        """Let go of native code; nothing is asked of the line any more."""

    def add_counts(self, metrics: ModelMetrics) -> None:
        """Add what was counted since the last call."""

    def statistics(self) -> tuple[int, int, int, int, int, int, int]:
        """Return what the line holds and has done, in the order of `QueueStatistics`."""
