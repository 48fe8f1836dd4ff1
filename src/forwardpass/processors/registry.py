"""Finds installed processors by the name of their entry point."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from forwardpass.core.protocols import Processor
from forwardpass.errors import UnknownProcessor

__all__ = ["GROUP", "available_processors", "open_processor", "processor_files"]

GROUP = "forwardpass.processors"


def available_processors() -> tuple[str, ...]:
    """Return the names of all installed processors."""
    return tuple(sorted(entry_points(group=GROUP).names))


def open_processor(name: str, folder: Path) -> Processor:
    """Construct the processor `name` with the folder of its files.

    Raises:
        UnknownProcessor: no installed package provides it.
        MissingExtra: a package that the processor needs is not installed.
    """
    processor: Processor = _find(name).load()(folder)
    return processor


def processor_files(name: str, folder: Path) -> tuple[Path, ...]:
    """Return the files of `folder` that the processor needs: those that its class lists in `files`.

    Raises:
        UnknownProcessor: no installed package provides it.
    """
    kind: Any = _find(name).load()
    return tuple(folder / file for file in kind.files if (folder / file).is_file())


def _find(name: str) -> EntryPoint:
    for entry in entry_points(group=GROUP, name=name):
        return entry
    raise UnknownProcessor(name=name, available=available_processors())
