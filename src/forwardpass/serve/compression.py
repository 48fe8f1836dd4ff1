"""Compressed request bodies, unpacked within limits: a few kilobytes must not become gigabytes."""

from __future__ import annotations

import zlib

from forwardpass.errors import BodyTooLarge, MalformedRequest

__all__ = ["decompress"]

MAX_RATIO = 100
MIN_RATIO_BYTES = 2**20
"""Below this, any ratio is harmless."""
_WINDOWS = {"gzip": 31, "x-gzip": 31, "deflate": 15}


def decompress(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Unpack a body.

    >>> decompress(zlib.compress(b"tensor"), "deflate", 100)
    b'tensor'

    Raises:
        MalformedRequest: the encoding is unknown, or the body does not follow it.
        BodyTooLarge: it would be larger than `max_bytes`, or a hundred times larger than what was sent.
    """
    if encoding in ("identity", ""):
        return body
    if encoding not in _WINDOWS:
        known = "gzip and deflate"
        raise MalformedRequest(reason=f"the content encoding '{encoding[:20]}' is not known; {known} are")
    limit = min(max_bytes, max(MIN_RATIO_BYTES, MAX_RATIO * len(body)))
    unpacker = zlib.decompressobj(_WINDOWS[encoding])
    try:
        unpacked = unpacker.decompress(body, limit + 1)
    except zlib.error as error:
        raise MalformedRequest(reason=f"the body is not {encoding}") from error
    if len(unpacked) > limit:
        raise BodyTooLarge(max_bytes=limit)
    if not unpacker.eof or unpacker.unused_data:
        raise MalformedRequest(reason=f"the body is not one whole {encoding} stream")
    return unpacked
