"""Finds processors by their name: those of this package, and those that other packages register as entry points."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from forwardpass.core.protocols import DescribesTensors, Processor
from forwardpass.core.tensors import Signature, misfit
from forwardpass.errors import InvalidOption, UnknownProcessor

__all__ = ["GROUP", "available_processors", "open_processor", "processor_files"]

GROUP = "forwardpass.processors"
SHIPPED = {
    "image-classifier": "forwardpass.processors.image:ImageClassifier",
    "labels": "forwardpass.processors.labels:Labels",
    "sentence-encoder": "forwardpass.processors.text:SentenceEncoder",
    "waveform": "forwardpass.processors.audio:Waveform",
}
"""They are not entry points: looking those up takes 18 ms, which every start of a server would pay."""


def available_processors() -> tuple[str, ...]:
    """Return the names of all installed processors."""
    from importlib.metadata import entry_points

    return tuple(sorted({*SHIPPED, *entry_points(group=GROUP).names}))


def open_processor(name: str, folder: Path, signature: Signature | None = None) -> Processor:
    """Construct the processor `name` with the folder of its files, for a model with this signature.

    A signature without outputs is that of samples: what the model answers is not known yet.

    Raises:
        InvalidOption: it does not fit the model.
        UnknownProcessor: no installed package provides it.
        MissingExtra: a package that the processor needs is not installed.
    """
    processor: Processor = _find(name)(folder)
    if signature is not None and isinstance(processor, DescribesTensors):
        _check(name, processor, signature)
    return processor


def _check(name: str, processor: DescribesTensors, signature: Signature) -> None:
    taken = {spec.name: spec for spec in signature.inputs}
    made = {spec.name: spec for spec in processor.inputs} if processor.inputs is not None else taken
    if made.keys() != taken.keys():
        expected = f"one for a model with the inputs {', '.join(taken)}; it makes {', '.join(made)}"
        raise InvalidOption(option="processor", value=name, expected=expected)
    for tensor, spec in made.items():
        reason = misfit(spec, taken[tensor])
        if reason:
            expected = f"one whose '{tensor}' is {taken[tensor]}; it makes {spec}: {reason}"
            raise InvalidOption(option="processor", value=name, expected=expected)
    outputs = [spec.name for spec in signature.outputs]
    if outputs and processor.output is not None and processor.output not in outputs:
        expected = f"one that reads an output of the model ({', '.join(outputs)}), not '{processor.output}'"
        raise InvalidOption(option="processor", value=name, expected=expected)


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
