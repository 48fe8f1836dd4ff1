"""A file that a person sent, as a processor sees it."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["UNKNOWN_MEDIA_TYPE", "Upload"]

UNKNOWN_MEDIA_TYPE = "application/octet-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """The bytes of a file, and the media type that the sender claims; only decoding tells whether that is true.

    The sender's name for the file is not kept: it says nothing about the content and could be anything.

    >>> Upload(content=b"RIFF", media_type="audio/wav")
    Upload(media_type='audio/wav')
    """

    content: bytes = field(repr=False)
    media_type: str = UNKNOWN_MEDIA_TYPE
