"""Finds processors by their name: those of this package, and those that other packages register as entry points."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from forwardpass.core.protocols import Processor
from forwardpass.errors import UnknownProcessor

__all__ = ["GROUP", "available_processors", "open_processor", "processor_files"]

GROUP = "forwardpass.processors"
SHIPPED = {
    "image-classifier": "forwardpass.processors.image:ImageClassifier",
    "sentence-encoder": "forwardpass.processors.text:SentenceEncoder",
    "waveform": "forwardpass.processors.audio:Waveform",
}
"""They are not entry points: looking those up takes 18 ms, which every start of a server would pay."""


def available_processors() -> tuple[str, ...]:
    """Return the names of all installed processors."""
    from importlib.metadata import entry_points

    return tuple(sorted({*SHIPPED, *entry_points(group=GROUP).names}))


def open_processor(name: str, folder: Path) -> Processor:
    """Construct the processor `name` with the folder of its files.

    Raises:
        UnknownProcessor: no installed package provides it.
        MissingExtra: a package that the processor needs is not installed.
    """
    processor: Processor = _find(name)(folder)
    return processor


def processor_files(name: str, folder: Path) -> tuple[Path, ...]:
    """Return the files of `folder` that the processor needs: those that its class lists in `files`.

    Raises:
        UnknownProcessor: no installed package provides it.
    """
    return tuple(folder / file for file in _find(name).files if (folder / file).is_file())


def _find(name: str) -> Any:
    if name in SHIPPED:
        module, _, attribute = SHIPPED[name].partition(":")
        return getattr(import_module(module), attribute)
    from importlib.metadata import entry_points

    for entry in entry_points(group=GROUP, name=name):
        return entry.load()
    raise UnknownProcessor(name=name, available=available_processors())
