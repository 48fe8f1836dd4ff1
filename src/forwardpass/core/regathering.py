"""Whether to wait a moment for those who were just answered: they may ask again, and share a batch with who waits.

Clients that send their next request when they have an answer come back one by one within a fraction of a millisecond. A
worker that begins at once runs without them, and they without the others, again and again: what a call costs beside its
rows is paid twice. The wait is short against that, ends as soon as all are there, and is given up where they do not
come, as with clients that know nothing of each other. A lone client is never waited for. No clock in here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from forwardpass.core.batching import Batch, BatchQueue

__all__ = ["LEAST_BATCH_S", "Regathering", "Wait"]

SHARE_OF_SAVING = 0.4
"""A wait takes at most so much of what it saves where all come back."""
MIN_WAIT_S = 1e-3
"""A tick of an event loop's timer: a wait that nobody ends takes one, and what saves less than that is not begun."""
MAX_WAIT_S = 2e-3
LEAST_BATCH_S = MIN_WAIT_S / SHARE_OF_SAVING
"""A batch that takes less cannot save enough: for a tiny model, even asking would be dear."""

SMOOTHING = 0.25
LEAST_SHARE = 0.5
"""Of those awaited, as a running mean: where fewer come, waiting is given up …"""
NUM_LEFT_OUT = 20
"""… and tried again after so many batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """For how many to be there, of which some were before, and for how long at most."""

    num_before: int
    num_wanted: int
    seconds: float


class Regathering:
    """Decides about waits for one queue, and learns from what came of them."""

    def __init__(self, queue: BatchQueue) -> None:
        self._queue = queue
        self._share = 1.0
        self._num_left_out = 0

    def wait_after(self, batch: Batch, *, num_answered: int, num_waiting: int, num_running: int) -> Wait | None:
        """Return for what a worker waits that has answered the requests of a batch; None for nothing.

        It is for its part of all that are known: of those answered, those waiting, and those running elsewhere.
        """
        num_rows = max(batch.num_rows // num_answered, 1)
        share = (num_answered + num_waiting + num_running) // self._queue.num_workers
        num_wanted = min(share, num_answered + num_waiting, self._queue.max_batch_rows // num_rows)
        num_first = max(num_waiting, 1)
        if num_wanted <= num_first:
            return None
        saved_s = self._queue.saved_by_sharing_s(num_first * num_rows, (num_wanted - num_first) * num_rows, batch)
        seconds = min(SHARE_OF_SAVING * saved_s, MAX_WAIT_S)
        if seconds < MIN_WAIT_S:
            return None
        if self._share < LEAST_SHARE and self._num_left_out < NUM_LEFT_OUT:
            self._num_left_out += 1
            return None
        self._num_left_out = 0
        return Wait(num_before=num_waiting, num_wanted=num_wanted, seconds=seconds)

    def longer(self, wait: Wait, batch: Batch, *, num_answered: int) -> Wait:
        """Return a wait that has begun, for those of another batch that was answered meanwhile, too."""
        num_rows = max(batch.num_rows // num_answered, 1)
        return replace(wait, num_wanted=wait.num_wanted + min(num_answered, self._queue.max_batch_rows // num_rows))

    def learn(self, wait: Wait, num_waiting: int) -> None:
        """Take note of how many are there now that a wait is over."""
        came = (num_waiting - wait.num_before) / (wait.num_wanted - wait.num_before)
        self._share += SMOOTHING * (min(max(came, 0.0), 1.0) - self._share)
