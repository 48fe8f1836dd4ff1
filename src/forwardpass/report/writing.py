"""Files that a command writes for its user: whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from forwardpass.errors import InvalidOption, StorageFailed

__all__ = ["check_writable", "write_text"]


def check_writable(path: Path, *, option: str) -> None:
    """Check before long work that its result will find a place.

    Raises:
        InvalidOption: the folder does not exist, or there is a folder of this name.
        StorageFailed: the folder may not be written to.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise InvalidOption(option=option, value=str(path), expected="a file in a folder that exists")
    if path.is_dir():
        raise InvalidOption(option=option, value=str(path), expected="a file, and this is a folder")
    if not os.access(folder, os.W_OK):
        raise StorageFailed(path=str(path), reason=f"the folder '{folder}' may not be written to")


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
