"""What a killed Triton leaves on the disk: a copy of each model, in a folder of `/tmp` that no setting moves."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

__all__ = ["family_of", "removing_model_folders"]

MODEL_FOLDER = re.compile(r"/tmp/folder\w{6}(?=/)")


def family_of(pid: int) -> list[psutil.Process]:
    """Return a process and all below it; nothing if it has ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


@contextlib.contextmanager
def removing_model_folders(family: Sequence[psutil.Process]) -> Iterator[None]:
    """End the processes in the block; then the folders that they were started with go, unless Triton removed them."""
    folders = {folder for process in family for folder in _folders(process)}
    try:
        yield
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def _folders(process: psutil.Process) -> set[Path]:
    try:
        words = process.cmdline()
    except psutil.Error:
        return set()
    return {Path(found.group()) for word in words if (found := MODEL_FOLDER.match(word))}
