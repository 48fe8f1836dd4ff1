"""A signature inside a model file whose format has no place for the names of axes and outputs."""

from __future__ import annotations

import msgspec

from forwardpass.core.tensors import Signature

__all__ = ["SIGNATURE_ENTRY", "decode_signature", "encode_signature"]

SIGNATURE_ENTRY = "forwardpass.json"
"""What the entry is called where a format takes further files."""


def encode_signature(signature: Signature) -> str:
    """Write a signature as JSON."""
    return msgspec.json.encode(signature).decode()


def decode_signature(text: str | bytes) -> Signature | None:
    """Read what `encode_signature` wrote; None for an empty text, or one that somebody else wrote."""
    try:
        return msgspec.json.decode(text, type=Signature) if text else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
