"""Weights that all workers of a version hold together: laid out for the kernels, in a file that each of them maps.

Each worker loads the model by itself, and would lay out the weights by itself, too: a copy each, beside what was read.
The first one that comes writes them down as the kernels take them; it and the others map that file. For n workers that
is one copy instead of n, a worker that was lost is back sooner, and small batches are faster, as the workers do not
push each other's copies out of the processor's caches.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import secrets
import shutil
import tempfile
import time
from pathlib import Path

from forwardpass.bundle import BundledVariant
from forwardpass.core.variants import Format
from forwardpass.errors import ForwardpassError

__all__ = ["WeightFolder", "may_share", "shared_copy"]

LEAST_BYTES = 4 * 2**20
"""A smaller model is loaded in no time, and fits into the caches as often as there are workers."""
PREFIX = "forwardpass-weights-"
YOUNG_S = 60.0
"""A folder that is younger may belong to a server that has not locked it yet."""
WHOLE = "whole"
FILE = "model.onnx"


def may_share(variant: BundledVariant, *, num_workers: int, num_bytes: int) -> bool:
    """Tell whether sharing the weights of a variant, whose files have so many bytes, is possible and pays."""
    return num_workers > 1 and variant.format is Format.ONNX and num_bytes >= LEAST_BYTES


class WeightFolder:
    """A private folder for temporary files, which its server holds a lock in for as long as it lives.

    A server that was killed leaves its folder behind; the next one finds it unlocked, and removes it.

    Raises:
        OSError: there is no room for it.
    """

    def __init__(self, parent: Path | None = None) -> None:
        parent = parent or Path(tempfile.gettempdir())
        _remove_left(parent)
        self.path = parent / f"{PREFIX}{secrets.token_hex(8)}"
        self.path.mkdir(mode=0o700)
        self._owner = (self.path / "owner").open("w")
        fcntl.flock(self._owner, fcntl.LOCK_EX)

    def remove(self) -> None:
        """Remove the folder; who has mapped a file in it goes on."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._owner.close()


def shared_copy(model: Path, folder: Path) -> Path | None:
    """Return the file to load in place of `model`; None if it cannot be written, as on a full disk.

    The first worker that comes writes it, while the others wait for it; one that dies over it makes room for the next.
    """
    from forwardpass.runtimes.onnx import save_packed

    whole = folder / WHOLE
    with contextlib.suppress(OSError, ForwardpassError), (folder / "writing").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not whole.is_dir():
            draft = folder / f"draft-{secrets.token_hex(4)}"
            draft.mkdir()
            try:
                save_packed(model, draft / FILE)
                draft.rename(whole)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
                _give_back_memory()
        return whole / FILE
    return None


def _give_back_memory() -> None:
    """Have the C library return what is free: the session that has written is gone, its 100 MB would stay."""
    with contextlib.suppress(OSError, AttributeError):  # another library than glibc
        ctypes.CDLL(None).malloc_trim(0)


def _remove_left(parent: Path) -> None:
    """Remove the folders of servers that were killed."""
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # of another user, or gone by now
            status = folder.lstat()
            if status.st_uid != os.getuid() or time.time() - status.st_mtime < YOUNG_S:
                continue
            with (folder / "owner").open("r+") as owner:
                fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
