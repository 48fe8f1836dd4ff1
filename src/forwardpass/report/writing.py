"""Files that a command writes for its user: whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from forwardpass.errors import StorageFailed

__all__ = ["write_text"]


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` through a temporary file beside it.

    Raises:
        StorageFailed: the folder does not exist, or the disk is full.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.write_text(text)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StorageFailed(path=str(path), reason=error.strerror or str(error)) from error
