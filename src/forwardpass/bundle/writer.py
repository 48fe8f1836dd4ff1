"""Writing a bundle so that it is either whole or not there."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from forwardpass.bundle.manifest import MANIFEST_NAME, FileRecord, Manifest, encode_manifest
from forwardpass.bundle.paths import check_member_name
from forwardpass.bundle.reader import is_bundle
from forwardpass.core.archives import write_calls
from forwardpass.core.tensors import Tensors
from forwardpass.errors import InvalidOption, StorageFailed

__all__ = ["BundleWriter", "check_destination"]


def check_destination(destination: Path) -> None:
    """Check that a bundle may be written there: nothing is replaced but a bundle.

    Raises:
        InvalidOption: there is something else.
    """
    is_free = not destination.exists() or is_bundle(destination)
    if not is_free and not (destination.is_dir() and not any(destination.iterdir())):
        raise InvalidOption(option="--out", value=str(destination), expected="a new folder, or a bundle to replace")


class BundleWriter:
    """Collects files in a hidden folder beside the destination and renames it when it is complete.

    Leaving the `with` block without `commit`, for whatever reason, removes everything that was written.

        with BundleWriter(destination) as writer:
            writer.add_file("variants/fp32/model.onnx", path)
            writer.add_calls("golden/inputs.npz", calls)
            writer.commit(manifest_without_files)
    """

    def __init__(self, destination: Path) -> None:
        self._destination = destination.absolute()
        self._staging: Path | None = None
        self._files: dict[str, FileRecord] = {}

    def __enter__(self) -> Self:
        check_destination(self._destination)
        try:
            self._destination.parent.mkdir(parents=True, exist_ok=True)
            prefix = f".{self._destination.name}.partial-"
            self._staging = Path(tempfile.mkdtemp(prefix=prefix, dir=self._destination.parent))
            self._staging.chmod(0o755)
        except OSError as error:
            raise StorageFailed(path=str(self._destination), reason=error.strerror or str(error)) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._staging is not None:
            shutil.rmtree(self._staging, ignore_errors=True)
        if isinstance(error, OSError) and kind is not None and kind.__module__ == "builtins":
            raise StorageFailed(path=str(self._destination), reason=error.strerror or str(error)) from error

    def add_file(self, member: str, source: Path) -> None:
        """Copy `source` into the bundle as `member`."""
        target = self._target(member)
        shutil.copyfile(source, target)
        with target.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self._files[member] = FileRecord(sha256=digest, size_bytes=target.stat().st_size)

    def add_bytes(self, member: str, content: bytes) -> None:
        """Write `content` into the bundle as `member`."""
        self._target(member).write_bytes(content)
        self._files[member] = FileRecord(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))

    def add_calls(self, member: str, calls: Sequence[Tensors]) -> None:
        """Write the tensors of several calls as one `.npz`."""
        buffer = io.BytesIO()
        write_calls(buffer, calls, is_compressed=True)
        self.add_bytes(member, buffer.getvalue())

    def commit(self, manifest: Manifest) -> None:
        """Complete the bundle: fill in the hashes, write the manifest, and put the folder in its place."""
        assert self._staging is not None, "commit() is called inside the with block"
        complete = encode_manifest(_with_files(manifest, self._files))
        (self._staging / MANIFEST_NAME).write_bytes(complete)
        for folder, _, files in os.walk(self._staging):
            for name in files:
                _flush_to_disk(Path(folder) / name)
        retired = None
        if self._destination.exists():
            retired = self._staging.with_name(self._staging.name + "-old")
            self._destination.rename(retired)
        self._staging.rename(self._destination)
        self._staging = None
        _flush_to_disk(self._destination.parent)
        if retired is not None:
            shutil.rmtree(retired, ignore_errors=True)

    def _target(self, member: str) -> Path:
        assert self._staging is not None, "files are added inside the with block"
        check_member_name(member, bundle=str(self._destination))
        target = self._staging / member
        target.parent.mkdir(parents=True, exist_ok=True)
        return target


def _with_files(manifest: Manifest, files: dict[str, FileRecord]) -> Manifest:
    fields = {name: getattr(manifest, name) for name in manifest.__struct_fields__}
    return Manifest(**(fields | {"files": dict(sorted(files.items()))}))


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
