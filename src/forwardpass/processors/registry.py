"""Finds installed processors by the name of their entry point."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from forwardpass.core.protocols import Processor
from forwardpass.errors import UnknownProcessor

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["GROUP", "available_processors", "open_processor", "processor_files"]

GROUP = "forwardpass.processors"


def available_processors() -> tuple[str, ...]:
    """Return the names of all installed processors."""
    from importlib.metadata import entry_points

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
    # Here and not above: it takes 18 ms to import, which a bundle without a processor need not wait for.
    from importlib.metadata import entry_points

    for entry in entry_points(group=GROUP, name=name):
        return entry
    raise UnknownProcessor(name=name, available=available_processors())
