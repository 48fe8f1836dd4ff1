"""Finished steps, remembered by the hash of everything that went into them.

A step works in a folder of its own. Its record is written last, so a step that was interrupted has none and runs
again; a step whose inputs, settings or software have changed has another key and runs again, too.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from forwardpass.errors import StorageFailed, WorkInProgress

__all__ = ["StepStore", "hash_file", "step_key"]

RECORD = "done.json"
LOCK = "lock"


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    key: str
    files: dict[str, str]
    """SHA-256 by path relative to the step's folder."""
    document: msgspec.Raw


class StepStore:
    """The working folder of one `ship`: one folder a step."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process, and remove it at the end if nothing was kept in it.

        Raises:
            WorkInProgress: another process holds it, or has just removed it.
            StorageFailed: it cannot be made.
        """
        with _storage_failures(self._root):
            self._root.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._root / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            self._lock(descriptor)
            try:
                yield
            finally:
                self._remove_if_empty()
        finally:
            os.close(descriptor)

    def folder(self, step: str) -> Path:
        """Return the folder of a step."""
        return self._root / step

    def find(self, step: str, key: str) -> bytes | None:
        """Return the document of a finished step, or None if it has to run."""
        try:
            record = msgspec.json.decode((self.folder(step) / RECORD).read_bytes(), type=_Record)
        except (OSError, msgspec.DecodeError):
            return None
        if record.key != key or not all(self._is_intact(step, *file) for file in record.files.items()):
            return None
        return bytes(record.document)

    def begin(self, step: str) -> Path:
        """Empty the folder of a step and return it."""
        folder = self.folder(step)
        shutil.rmtree(folder, ignore_errors=True)
        with _storage_failures(folder):
            folder.mkdir(parents=True)
        return folder

    def finish(self, step: str, key: str, document: bytes) -> None:
        """Record that the step is done, with the files that it has made."""
        folder = self.folder(step)
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        files = {path.relative_to(folder).as_posix(): hash_file(path) for path in paths}
        record = _Record(key=key, files=files, document=msgspec.Raw(document))
        partial = folder / f"{RECORD}.partial"
        with _storage_failures(folder):
            partial.write_bytes(msgspec.json.encode(record))
            partial.rename(folder / RECORD)

    def _lock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WorkInProgress(path=str(self._root)) from error
        if not os.fstat(descriptor).st_nlink:  # removed by its holder between our opening and locking it
            raise WorkInProgress(path=str(self._root))

    def _remove_if_empty(self) -> None:
        """Remove empty folders of steps, and where nothing but the lock is left also that and the folders around it."""
        with suppress(OSError):  # a folder that cannot be removed does no harm
            for folder in [path for path in self._root.iterdir() if path.is_dir()]:
                if not any(folder.iterdir()):
                    folder.rmdir()
            if [path.name for path in self._root.iterdir()] == [LOCK]:
                (self._root / LOCK).unlink()
                self._root.rmdir()
                self._root.parent.rmdir()

    def _is_intact(self, step: str, member: str, sha256: str) -> bool:
        path = self.folder(step) / member
        return path.is_file() and hash_file(path) == sha256


@contextmanager
def _storage_failures(folder: Path) -> Iterator[None]:
    """Put what the file system says into a sentence."""
    try:
        yield
    except OSError as error:
        raise StorageFailed(path=str(folder), reason=error.strerror or str(error)) from error


def step_key(*parts: object) -> str:
    """Return a hash of everything that a step depends on; the parts are values that JSON can carry."""
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
