"""Which paths a bundle may name: plain files inside its own folder, nothing else."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from forwardpass.errors import BundleDamaged, UnsafePath

__all__ = ["check_member_name", "list_members", "open_member"]


def check_member_name(member: str, *, bundle: str) -> None:
    """Raise `UnsafePath` unless `member` is a clean relative path.

    >>> check_member_name("variants/int8/model.onnx", bundle="b")
    >>> check_member_name("../secret", bundle="b")
    Traceback (most recent call last):
    forwardpass.errors.bundles.UnsafePath: Refusing to open the bundle 'b': its file '../secret' leaves the folder. \
Bundles hold plain files only.
    """
    pure = PurePosixPath(member)
    if not member or "\\" in member or "\0" in member or pure.is_absolute() or ".." in pure.parts:
        raise UnsafePath(path=bundle, member=member, reason="leaves the folder")
    if str(pure) != member:
        raise UnsafePath(path=bundle, member=member, reason="is not written in its plain form")


def list_members(root: Path) -> Iterator[str]:
    """Yield the relative path of every file below `root`; links and special files are refused."""
    for folder, folders, files in os.walk(root, followlinks=False):
        base = Path(folder)
        for name in (*folders, *files):
            entry = base / name
            member = entry.relative_to(root).as_posix()
            mode = entry.lstat().st_mode
            if stat.S_ISLNK(mode):
                raise UnsafePath(path=str(root), member=member, reason="is a symbolic link")
            if stat.S_ISREG(mode):
                yield member
            elif not stat.S_ISDIR(mode):
                raise UnsafePath(path=str(root), member=member, reason="is not a regular file")


def open_member(root: Path, member: str) -> int:
    """Open a file of the bundle for reading and return its descriptor.

    The checks are made on the opened file, so that nothing can be put in its place between check and use: no
    symbolic link at the end of the path (O_NOFOLLOW), a regular file, and no second name (hard link) for it.
    """
    check_member_name(member, bundle=str(root))
    try:
        descriptor = os.open(root / member, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise BundleDamaged(path=str(root), reason=f"the file '{member}' is missing") from error
    except OSError as error:
        raise UnsafePath(path=str(root), member=member, reason=f"cannot be opened ({error.strerror})") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        reason = "is a hard link" if stat.S_ISREG(status.st_mode) else "is not a regular file"
        raise UnsafePath(path=str(root), member=member, reason=reason)
    return descriptor
