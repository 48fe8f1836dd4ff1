"""Telling checkpoints apart by their content, without any of the libraries that read them."""

from __future__ import annotations

from pathlib import Path

__all__ = ["is_pickle"]

_PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04", b"(dp", b"}q", b"ccollections")
"""How pickles begin, and the zip archives that torch.save puts them in."""

_LENGTH_BYTES = 8
"""A safetensors file begins with the length of its JSON header, little-endian."""


def is_pickle(path: Path) -> bool:
    """Tell from its content whether a file is a pickle; a name proves nothing.

    The length of a safetensors header can begin like a pickle (640 is `80 02`), so that header is looked for first. A
    file taken for safetensors is read by a library that knows no pickle, so a forged header gains nothing.
    """
    with path.open("rb") as file:
        start = file.read(16)
    return start.startswith(_PICKLE_STARTS) and not _is_safetensors(start, path.stat().st_size)


def _is_safetensors(start: bytes, num_bytes: int) -> bool:
    header_bytes = int.from_bytes(start[:_LENGTH_BYTES], "little")
    return start[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{" and _LENGTH_BYTES + header_bytes <= num_bytes
