"""The same variant in a form that a new process is ready with sooner: mapped from the disk, not parsed and copied."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from forwardpass.core.samples import SampleGroup, Samples
from forwardpass.core.tensors import Array
from forwardpass.core.variants import SUFFIXES, Format, Precision, Step, Variant
from forwardpass.errors import NothingGained
from forwardpass.optimize.library import onnx
from forwardpass.runtimes import RuntimeOptions, open_runtime
from forwardpass.runtimes.onnx import MIN_MAPPED_BYTES, save_mapped, save_ort
from forwardpass.runtimes.processors import LAYOUT, vector_layout

__all__ = ["MappedForm", "build_mapped_form", "mapped_forms"]

NUM_COMPARED_ROWS = 32
BATCH_SIZES = (1, 2, 8)
"""Answers are compared at these; a batch of one takes other kernels than one of many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MappedForm:
    """A form that starts sooner: what it is called behind the name of its variant, and how it is written."""

    suffix: str
    format: Format
    write: Callable[[Path, Path], Step]


def mapped_forms(*, pin_processor: bool) -> tuple[MappedForm, ...]:
    """Return the forms that run on any processor and, if that is wanted, the one that is laid out for this one."""
    portable = (
        MappedForm(suffix="mapped", format=Format.ONNX, write=_write_mapped),
        MappedForm(suffix="ort", format=Format.ORT, write=_write_ort),
    )
    pinned = MappedForm(suffix="pinned", format=Format.ORT, write=_write_pinned)
    return (*portable, pinned) if pin_processor else portable


def build_mapped_form(variant: Variant, form: MappedForm, samples: Samples, folder: Path) -> Variant:
    """Write a form of a variant in a folder of its own, and hold it to the same bytes.

    Raises:
        NothingGained: there is nothing to map, or the form answers other bytes than the variant.
    """
    name = f"{variant.name}-{form.suffix}"
    home = folder / name
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    target = home / f"model{SUFFIXES[form.format]}"
    step = form.write(Path(variant.location), target)
    made = Variant(
        name=name,
        format=form.format,
        precision=variant.precision,
        location=str(target),
        recipe=variant.recipe.then(step),
    )
    where = _first_difference(variant, made, samples)
    if where:
        shutil.rmtree(home)
        raise NothingGained(
            reason=f"{where}, the answers are not the bytes of {variant.name}: without the layout that suits this "
            "processor, sums are taken in another order"
        )
    return made


def _write_mapped(source: Path, target: Path) -> Step:
    if not save_mapped(source, target, level="extended"):
        raise NothingGained(reason=f"no weight is as large as {MIN_MAPPED_BYTES} bytes: there is nothing to map")
    return Step(operation="map-weights", parameters=(("level", "extended"), ("min_bytes", MIN_MAPPED_BYTES)))


def _write_ort(source: Path, target: Path) -> Step:
    save_ort(source, target)
    return Step(operation="write-ort", parameters=(("level", "extended"),))


def _write_pinned(source: Path, target: Path) -> Step:
    """Write the layout for this kind of processor, and its name into the file, so that no other runs it."""
    layout = vector_layout()
    model = onnx.load(str(source))
    model.metadata_props.add(key=LAYOUT, value=layout)
    named = target.with_suffix(".onnx")
    onnx.save(model, str(named))
    save_ort(named, target, for_this_processor=True)
    named.unlink()
    return Step(operation="write-ort", parameters=(("level", "all"), ("layout", layout)))


def _first_difference(variant: Variant, made: Variant, samples: Samples) -> str:
    """Say where two files first answer other bytes, or return the empty string."""
    theirs = open_runtime(variant.format, variant.location, options=RuntimeOptions())
    ours = open_runtime(made.format, made.location, options=RuntimeOptions())
    may_share = theirs.signature.is_batchable and variant.precision is not Precision.INT8_DYNAMIC
    for size in BATCH_SIZES if may_share else (1,):
        for call in _calls(samples, size):
            expected, found = theirs.run(call), ours.run(call)
            if any(_bytes(found[name]) != _bytes(answer) for name, answer in expected.items()):
                return f"in batches of {size}" if size > 1 else "for a row alone"
    return ""


def _calls(samples: Samples, size: int) -> Iterator[dict[str, Array]]:
    for group in samples.head(NUM_COMPARED_ROWS).groups:
        for start in range(0, len(group) - size + 1, size):
            yield _inputs(group, start, size)


def _inputs(group: SampleGroup, start: int, size: int) -> dict[str, Array]:
    return dict(group.take(slice(start, start + size)).inputs)


def _bytes(array: Array) -> bytes:
    return repr(array.tolist()).encode() if array.dtype == object else np.ascontiguousarray(array).tobytes()
