"""How the front and a worker talk: small messages over a socket, tensors through shared memory.

One batch is under way at a time, so the memory belongs to the front until it sends `Run`, to the worker until it
answers, and then to the front again. No lock is needed, and nothing is pickled. Messages keep their boundaries
(SOCK_SEQPACKET), so a message is read whole or not at all.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
from collections.abc import Iterable
from functools import cache
from typing import Any

import msgspec
import numpy as np

from forwardpass.core.strings import decode_strings, encode_strings
from forwardpass.core.tensors import Array

__all__ = [
    "OUT_OF_MEMORY",
    "Arena",
    "Done",
    "Failed",
    "Message",
    "Placed",
    "Ready",
    "Run",
    "WorkerConfig",
    "decode",
    "encode",
    "socket_pair",
]

ALIGNMENT = 64
FIRST_ARENA_BYTES = 2**20
MAX_MESSAGE_BYTES = 2**16


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is told when it starts; `channel` and `arena` are inherited file descriptors."""

    bundle: str
    digest: str
    """Of the bundle that the front has opened: another one may have taken its place."""
    variant: str
    num_threads: int
    channel: int
    arena: int
    weights: str = ""
    """The folder of the weights that all workers of the version hold together; empty for none."""
    wide_threads: int = 0
    """With so many threads it holds the variant a second time; 0 for not at all."""
    is_wide_exact: bool = False
    """Whether that may only be used if it answers the same to the last bit."""


class Placed(msgspec.Struct, frozen=True, array_like=True):
    """Where a tensor lies in the arena."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int = 0
    """Of the encoded strings; of other tensors dtype and shape tell it."""


class Ready(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The worker has loaded, checked and warmed the variant."""

    runtime: str
    version: str
    has_wide: bool = False
    why_not_wide: str = ""
    """Why the variant is not there a second time, if it should be: half a sentence."""


class Run(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The batch in the arena is to be run."""

    arena_bytes: int
    inputs: tuple[Placed, ...]
    is_wide: bool = False


class Done(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The outputs are in the arena. `ended_s` is of the monotonic clock, which is one for all processes."""

    arena_bytes: int
    outputs: tuple[Placed, ...]
    compute_s: float
    ended_s: float


OUT_OF_MEMORY = "out-of-memory"
"""The slug of a failure that is not the batch's fault."""


class Failed(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The worker could not start, or the batch could not be run."""

    slug: str
    message: str


Message = Ready | Run | Done | Failed

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Message).decode


STRINGS = np.dtype(object).str
"""Strings lie in the arena as the protocol sends them: pointers would mean nothing to the other process."""


@cache
def _dtype_code(dtype: np.dtype[Any]) -> str:
    """Return what numpy makes the dtype from again; it takes a microsecond to put together."""
    return dtype.str


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a channel."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _encoded(parts: list[Array]) -> Array:
    return np.frombuffer(b"".join(map(encode_strings, parts)), np.uint8)


class Arena:
    """Memory that both processes see; it grows when a batch needs more."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._map = mmap.mmap(descriptor, os.fstat(descriptor).st_size)

    @classmethod
    def create(cls) -> Arena:
        """Make a new arena that has no name, so nothing is left when both processes are gone."""
        descriptor = os.memfd_create("forwardpass", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, FIRST_ARENA_BYTES)
        return cls(descriptor)

    @property
    def num_bytes(self) -> int:
        """The size that the other end has to know."""
        return len(self._map)

    @property
    def memory(self) -> mmap.mmap:
        """What is mapped now."""
        return self._map

    def follow(self, num_bytes: int) -> None:
        """Map what the other end has made larger.

        Raises:
            OSError: there is not enough memory; what was mapped before stays.
        """
        if num_bytes > len(self._map):
            self._map = mmap.mmap(self.descriptor, num_bytes)

    def place(self, tensors: Iterable[tuple[str, list[Array]]]) -> tuple[Placed, ...]:
        """Write tensors, each given as parts that are stacked along their first axis.

        Raises:
            OSError: there is not enough memory.
        """
        planned, offset = [], 0
        for name, parts in tensors:
            first = parts[0]
            shape = first.shape if len(parts) == 1 else (sum(map(len, parts)), *first.shape[1:])
            code = _dtype_code(first.dtype)
            if code == STRINGS:
                parts = [_encoded(parts)]
                size = parts[0].nbytes
                placed = Placed(name, code, shape, offset, size)
            else:
                size = first.nbytes if len(parts) == 1 else sum(part.nbytes for part in parts)
                placed = Placed(name, code, shape, offset)
            planned.append((placed, parts))
            offset += -(-size // ALIGNMENT) * ALIGNMENT
        self.reserve(offset)
        for placed, parts in planned:
            whole = self._bytes_at(placed) if placed.dtype == STRINGS else self.view(placed)
            if len(parts) == 1:
                whole[...] = parts[0]
            else:
                np.concatenate(parts, out=whole)
        return tuple(placed for placed, _ in planned)

    def view(self, placed: Placed) -> Array:
        """Return a tensor without copying it, strings apart; it is valid until the arena changes hands."""
        if placed.dtype == STRINGS:
            return decode_strings(self._bytes_at(placed).data, placed.shape)
        return np.ndarray(placed.shape, placed.dtype, self._map, placed.offset)

    def _bytes_at(self, placed: Placed) -> Array:
        return np.ndarray((placed.num_bytes,), np.uint8, self._map, placed.offset)

    def close(self) -> None:
        """Let go of the memory now; views that are still held keep it alive."""
        os.close(self.descriptor)
        with contextlib.suppress(BufferError):
            self._map.close()

    def reserve(self, num_bytes: int) -> mmap.mmap:
        """Make room for so many bytes, and return the memory.

        Raises:
            OSError: there is not enough memory.
        """
        if num_bytes > len(self._map):
            size = 1 << (num_bytes - 1).bit_length()
            if os.fstat(self.descriptor).st_size < size:  # the other end may have made it larger than was mapped here
                os.ftruncate(self.descriptor, size)
            self._map = mmap.mmap(self.descriptor, size)
        return self._map
