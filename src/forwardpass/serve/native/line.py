"""The line of one version: what native code has to be told of a model, and what it has counted."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from forwardpass.core.tensors import TensorSpec
from forwardpass.errors import DeadlineExceeded, ForwardpassError, Overloaded
from forwardpass.protocol import NAMES
from forwardpass.serve.channel import Arena, Done, Placed
from forwardpass.serve.exchange import render
from forwardpass.serve.metrics import ModelMetrics
from forwardpass.serve.request import Request
from forwardpass.serve.responses import error_response
from forwardpass.serve.rest import answering, decode_call
from forwardpass.serve.versions import ModelVersion

if TYPE_CHECKING:
    from forwardpass.serve.native._front import Front, NativeBatch, NativeConnection
    from forwardpass.serve.native.front import NativeFront

__all__ = ["VersionLine", "open_line"]

log = logging.getLogger("forwardpass.serve")

DTYPES = ("float32", "float64", "int32", "int64")
QUEUE_FULL = 0


def open_line(version: ModelVersion, front: NativeFront, native: Front) -> VersionLine | None:
    """Return a line for a version, which then takes its requests from there, too; None if its form is unusual.

    The usual form is one input of numbers, whose rows all have the same shape, and such outputs.
    """
    signature = version.signature
    specs = (*signature.inputs, *signature.outputs)
    if not signature.is_batchable or len(signature.inputs) != 1 or not all(map(_is_usual, specs)):
        return None
    line = VersionLine(version, front, native)
    version.add_line(line)
    return line


def _is_usual(spec: TensorSpec) -> bool:
    return spec.dtype in DTYPES and all(isinstance(size, int) for size in spec.shape[1:])


class VersionLine:
    """Requests of the native front for one version."""

    def __init__(self, version: ModelVersion, front: NativeFront, native: Front) -> None:
        from forwardpass.serve.native._front import Line

        self._version = version
        self._front = front
        (given,) = version.signature.inputs
        dims = [size for size in given.shape[1:] if isinstance(size, int)]
        self.row_size = math.prod(dims)
        self._name, self._code, self._dims = given.name, np.dtype(given.dtype).str, dims
        self.line = Line(
            self,
            native,
            name=given.name,
            datatype=NAMES[given.dtype],
            dtype=given.dtype,
            dims=dims,
            before=_before(version),
            outputs=[_described(spec) for spec in version.signature.outputs],
            batch_sizes=version.sizing.batch_sizes,
            edges=version.metrics.total.edges,
            max_batch_rows=version.max_batch_rows,
            max_queue_rows=version.settings.max_queue_rows,
            num_workers=version.sizing.num_workers,
            timeout_s=version.timeout_s,
        )
        self._outputs = [(spec.name, np.dtype(spec.dtype).str, spec.shape[1:]) for spec in version.signature.outputs]
        self._placed: dict[int, tuple[Placed, ...]] = {}
        self._is_closed = False

    # --- what the dispatcher asks

    def __len__(self) -> int:
        return self.line.num_waiting

    @property
    def backlog_s(self) -> float:
        """How long what waits here keeps the workers busy."""
        return self.line.backlog_s

    @property
    def num_waiting_rows(self) -> int:
        """Rows of all that wait."""
        return self.line.num_waiting_rows

    def note(
        self, *, is_open: bool, busy_until_s: float, rows_ahead: int, rows_elsewhere: int, max_batch_rows: int
    ) -> None:
        """Take over what there is beside the line."""
        line = self.line
        line.is_open, line.busy_until_s = is_open, busy_until_s
        line.rows_ahead, line.rows_elsewhere, line.max_batch_rows = rows_ahead, rows_elsewhere, max_batch_rows

    def learn(self, curve: tuple[Iterable[float], Iterable[float]]) -> None:
        """Take over what is known of the latency."""
        self.line.set_curve(*curve)  # type: ignore[arg-type]  # any iterable becomes a vector

    def next_batch(self, now_s: float, num_free: int) -> NativeBatch | None:
        """Return what one of so many free workers runs now; those that cannot be in time get their answer."""
        return self.line.pop_batch(now_s, num_free)

    def place(self, batch: NativeBatch, arena: Arena) -> tuple[Placed, ...]:
        """Write the rows of a batch into the arena.

        Raises:
            OSError: there is not enough memory.
        """
        num_rows = batch.num_padded
        placed = self._placed.get(num_rows)
        if placed is None:
            placed = (Placed(self._name, self._code, (num_rows, *self._dims), 0),)
            self._placed[num_rows] = placed
        self.line.place(batch, arena.reserve(num_rows * self.line.row_bytes), 0)
        return placed

    def answer(self, batch: NativeBatch, arena: Arena, message: Done, *, started_s: float) -> bool:
        """Answer every request of a batch that has run; return False, and do nothing, if the outputs are unexpected."""
        by_name = {placed.name: placed for placed in message.outputs}
        offsets = []
        for name, code, dims in self._outputs:
            placed = by_name.get(name)
            if placed is None or placed.dtype != code or placed.shape != (batch.num_padded, *dims):
                return False
            offsets.append(placed.offset)
        self.line.finish(batch, arena.memory, offsets, started_s, time.monotonic())
        return True

    def release(self, batch: NativeBatch) -> list[Request]:
        """Return what has to be run again, as requests of the Python front."""
        return self._requests(self.line.release(batch))

    def drain(self) -> list[Request]:
        """Take out everything that waits."""
        return self._requests(self.line.drain())

    def expire(self, now_s: float, batches: Iterable[NativeBatch]) -> float | None:
        """Answer those whose deadline has passed; return the next deadline."""
        return self.line.expire(now_s, batches)

    def close(self) -> None:
        """Let go of native code, which leads back here: the circle would keep the version until the collector runs."""
        self._is_closed = True
        del self.line

    def add_counts(self, metrics: ModelMetrics) -> None:
        """Add what was counted since the last call."""
        totals, total_s, queues, queue_s, num_ok, num_rows, num_refused, num_late, failed_s, last_s = (
            self.line.take_counts()
        )
        for at, count in totals:
            metrics.total.counts[at] += count
        for at, count in queues:
            metrics.queue.counts[at] += count
        metrics.total.total += total_s
        metrics.queue.total += queue_s
        metrics.failed_s += failed_s
        metrics.outcomes.update(
            {
                word: count
                for word, count in (("ok", num_ok), (Overloaded.slug, num_refused), (DeadlineExceeded.slug, num_late))
                if count
            }
        )
        metrics.num_rows += num_rows
        if num_ok:
            metrics.last_s = max(metrics.last_s, time.time() - (time.monotonic() - last_s))

    def statistics(self) -> tuple[int, int, int, int, int, int, int]:
        """Return what the line holds and has done, in the order of `QueueStatistics`."""
        line = self.line
        return (
            line.num_waiting,
            line.num_waiting_rows,
            line.num_accepted,
            line.num_refused,
            line.num_expired,
            line.num_batches,
            line.num_batched,
        )

    # --- what native code asks

    def on_news(self) -> None:
        """Requests have come, or were refused."""
        if self._is_closed:  # native code tells on its next turn what was done between two of them
            return
        try:
            self._version.on_news(self.line.take_deadline())
        except Exception:  # the lines behind this one must hear of theirs
            log.exception("%s: what has come could not be run", self._version)

    def refusal(self, kind: int, wait_s: float, fact: float) -> bytes:
        """Put into words why a request is refused."""
        if kind == QUEUE_FULL:
            most = self.line.max_queue_rows
            return _rendered(Overloaded.queue_full(retry_after_s=wait_s, num_rows=int(fact), max_rows=most))
        return _rendered(Overloaded.too_late(retry_after_s=wait_s, needed_s=fact))

    def expiry(self, timeout_s: float) -> bytes:
        """Put into words that a deadline has passed."""
        return _rendered(DeadlineExceeded(deadline_s=timeout_s))

    def _requests(self, connections: Iterable[NativeConnection]) -> list[Request]:
        requests = []
        for connection in connections:
            arrived_s, deadline_s, timeout_s, waited_s = connection.ticket
            exchange = self._front.exchange(connection, waited_s)
            call = decode_call(exchange, self._version)
            answer = answering(exchange, self._version, call, asked_s=timeout_s)
            request = self._version.request(call.tensors, call.num_rows, answer, timeout_s=timeout_s)
            request.arrived_s, request.deadline_s = arrived_s, deadline_s
            exchange.on_abandoned = request.abandon
            requests.append(request)
        return requests


def _rendered(error: ForwardpassError) -> bytes:
    return render(error_response(error), keeps_alive=True, is_head=False)


def _before(version: ModelVersion) -> str:
    """Return the JSON of an answer up to its first output."""
    head = msgspec.json.encode({"model_name": version.model, "model_version": version.number}).decode()
    return f'{head[:-1]},"outputs":['


def _described(spec: TensorSpec) -> tuple[str, str, str, int]:
    """Return the JSON of an output up to and from its number of rows, its dtype and the elements of one row."""
    dims = [size for size in spec.shape[1:] if isinstance(size, int)]
    name, datatype = (msgspec.json.encode(word).decode() for word in (spec.name, NAMES[spec.dtype]))
    before = f'{{"name":{name},"datatype":{datatype},"shape":['
    return before, "".join(f",{size}" for size in dims) + "]", spec.dtype, math.prod(dims)
