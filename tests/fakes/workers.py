"""A worker that takes as long as it is told, and answers each row with itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from forwardpass.serve.channel import Arena, Done, Failed, Placed
from forwardpass.serve.process import WorkerListener, WorkerState

__all__ = ["TimedWorker"]


class TimedWorker:
    """Stands for a `WorkerProcess` on the event loop; `service` says how many seconds so many rows take."""

    def __init__(
        self,
        listener: WorkerListener,
        service: Callable[[int], float],
        *,
        unseen_s: float = 0.0,
        wide_service: Callable[[int], float] | None = None,
    ) -> None:
        self._listener = listener
        self._service = service
        self._unseen_s = unseen_s  # for which its answer lies there before the event loop gets to it
        self._wide_service = wide_service
        self.has_wide = wide_service is not None
        self.num_wide = 0
        self.state = WorkerState.IDLE
        self.arena = Arena.create()
        self.num_rows: list[int] = []

    def run(self, inputs: tuple[Placed, ...], *, is_wide: bool = False) -> None:
        """Be busy for as long as the batch takes."""
        self.state = WorkerState.BUSY
        num_rows = inputs[0].shape[0]
        self.num_rows.append(num_rows)
        self.num_wide += is_wide
        service_s = self._wide_service(num_rows) if is_wide and self._wide_service else self._service(num_rows)
        loop = asyncio.get_running_loop()
        loop.call_later(service_s + self._unseen_s, self._done, inputs, loop.time() + service_s)

    def fail(self) -> None:
        """Fail with the batch that it is running."""
        self.state = WorkerState.IDLE
        self._listener.on_failed(Failed("input-rejected", "made up"))

    def lose(self) -> None:
        """End with the batch that it is running, and not come back."""
        self.state = WorkerState.STARTING
        self._listener.on_lost()

    def replace(self) -> None:
        """Never asked for here: nothing hangs."""
        raise AssertionError("the worker did not hang")

    def _done(self, inputs: tuple[Placed, ...], ended_s: float) -> None:
        if self.state is WorkerState.STARTING:
            return
        self.state = WorkerState.IDLE
        self._listener.on_done(Done(self.arena.num_bytes, inputs, 0.0, ended_s))
