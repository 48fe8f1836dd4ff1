"""Results kept by the hash of what went into them, one file each: an interrupted search goes on where it was."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import msgspec

__all__ = ["ResultStore", "content_key", "hash_file", "hash_files"]

_T = TypeVar("_T")


class ResultStore:
    """A folder of results. A file appears whole or not at all, whatever happens to the process that writes it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, key: str, kind: type[_T]) -> _T | None:
        """Return a result, or None if there is none or it cannot be read."""
        try:
            return msgspec.json.decode((self.folder / f"{key}.json").read_bytes(), type=kind)
        except (OSError, msgspec.DecodeError):
            return None

    def keep(self, key: str, result: object) -> None:
        """Write a result."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f"{key}.{os.getpid()}.partial"
        partial.write_bytes(msgspec.json.encode(result))
        partial.replace(self.folder / f"{key}.json")


def hash_files(files: Iterable[Path]) -> str:
    """Return a hash over several files in their order."""
    return content_key([hash_file(file) for file in files])


def content_key(*parts: object) -> str:
    """Return a hash of values that JSON can carry."""
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()[:32]


def hash_file(path: str | Path) -> str:
    """Return the SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
