"""Requests that end the process that runs them, remembered by what they hold and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from forwardpass.core.strings import array_bytes
from forwardpass.core.tensors import Tensors

__all__ = ["Quarantine"]

SECONDS = 600.0
MAX_ACCUSATIONS = 2
MAX_ENTRIES = 1024
"""The oldest are forgotten beyond this."""


@dataclass(slots=True)
class _Entry:
    num_accusations: int
    until_s: float


class Quarantine:
    """Fingerprints of tensors that are not run again for a while; of the tensors themselves nothing is kept.

    Whoever is in a batch that ends its worker is accused; who then runs well alone is acquitted, and who is accused
    twice is guilty.
    """

    def __init__(self) -> None:
        self._entries: dict[bytes, _Entry] = {}

    def __bool__(self) -> bool:
        return bool(self._entries)

    @property
    def is_closed_to_some(self) -> bool:
        """Whether there is anything that is not run."""
        return any(entry.num_accusations >= MAX_ACCUSATIONS for entry in self._entries.values())

    def accuse(self, batch: Sequence[Tensors], *, now_s: float) -> list[float]:
        """Note that a worker ended over a batch; return for how many seconds each of it is not run again, or 0.

        What is in the batch several times is accused once: it was one death.
        """
        self._forget(now_s)
        fingerprints = [_fingerprint(tensors) for tensors in batch]
        for fingerprint in set(fingerprints):
            entry = self._entries.setdefault(fingerprint, _Entry(0, 0.0))
            entry.num_accusations += 1
            entry.until_s = now_s + SECONDS
        accusations = [self._entries[fingerprint].num_accusations for fingerprint in fingerprints]
        return [SECONDS if number >= MAX_ACCUSATIONS else 0.0 for number in accusations]

    def acquit(self, tensors: Tensors) -> None:
        """Note that they were run, and nothing happened."""
        self._entries.pop(_fingerprint(tensors), None)

    def seconds_left(self, tensors: Tensors, *, now_s: float) -> float:
        """Return how long `tensors` are still not to be run; 0 if they may."""
        self._forget(now_s)
        entry = self._entries.get(_fingerprint(tensors)) if self._entries else None
        return entry.until_s - now_s if entry is not None and entry.num_accusations >= MAX_ACCUSATIONS else 0.0

    def _forget(self, now_s: float) -> None:
        for key in [key for key, entry in self._entries.items() if entry.until_s <= now_s]:
            del self._entries[key]
        while len(self._entries) >= MAX_ENTRIES:
            del self._entries[next(iter(self._entries))]


def _fingerprint(tensors: Tensors) -> bytes:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
        digest.update(array_bytes(array))
    return digest.digest()
