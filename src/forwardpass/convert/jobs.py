"""One conversion: what it is told, and how its result comes to its place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from forwardpass.convert.axes import DynamicAxes
from forwardpass.convert.values import Conversion, TorchSource
from forwardpass.core.protocols import Progress
from forwardpass.core.samples import Samples
from forwardpass.core.variants import Format, Recipe, Step
from forwardpass.errors import StorageFailed
from forwardpass.runtimes import companions, format_of

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Job", "committed", "source_name", "with_recipe"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """One conversion: what the source is called, what it is run with, where it goes and what the caller may choose."""

    name: str
    samples: Samples | None
    out: Path
    opset: int | None
    axes: DynamicAxes
    tolerance: float
    progress: Progress


def source_name(source: TorchSource | nn.Module | Path) -> str:
    """Return what a source is called in sentences."""
    if isinstance(source, Path):
        return str(source)
    return source.reference if isinstance(source, TorchSource) else type(source).__name__


@contextmanager
def committed(out: Path) -> Iterator[Path]:
    """Give a path to write to, and move it to `out` if the block succeeds; otherwise nothing is left."""
    partial = out.with_name(f".{out.stem}.partial-{os.getpid()}{out.suffix or '.onnx'}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        for companion in companions(format_of(out), partial):
            companion.replace(out.with_suffix(companion.suffix))
        partial.replace(out)
    except OSError as error:
        if type(error).__module__ != "builtins":
            raise
        raise StorageFailed(path=str(out), reason=error.strerror or str(error)) from error
    finally:
        for leftover in list(out.parent.iterdir()) if out.parent.is_dir() else []:
            if leftover.name.startswith(partial.stem):
                leftover.unlink()


def with_recipe(conversion: Conversion, out: Path) -> Conversion:
    """Return the conversion of a file that has come to its place, with the step that made it."""
    parameters: list[tuple[str, str | int]] = [("exporter", conversion.exporter)]
    if conversion.variant.format is not Format.ONNX:
        parameters.append(("to", conversion.variant.format.value))
    if conversion.opset is not None:
        parameters.append(("opset", conversion.opset))
    step = Step(operation="convert", parameters=tuple(parameters))
    variant = replace(conversion.variant, location=str(out), recipe=Recipe(steps=(step,)))
    return replace(conversion, variant=variant)
