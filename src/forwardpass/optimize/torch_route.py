"""PyTorch's own route beside ONNX: programs in float and in 8 bits, each run as it is and compiled by Inductor."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from forwardpass.core.protocols import Progress
from forwardpass.core.variants import SUFFIXES, Format, Precision, Recipe, Step, Variant
from forwardpass.errors import MissingExtra, NothingGained
from forwardpass.optimize.candidates import Workshop
from forwardpass.optimize.entries import SHARE_OF_MAKING, Entry, Search
from forwardpass.optimize.making import MadeVariant, attempt, recall, record
from forwardpass.optimize.results import content_key

if TYPE_CHECKING:
    from forwardpass.optimize.torch_writers import TorchModel

__all__ = ["PROGRAMS", "Program", "make_torch"]

COMPILED = "-compiled"
CACHE = ".inductor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program that can be written, and then compiled."""

    name: str
    precision: Precision
    write: Callable[[TorchModel, Path], Step]


def make_torch(model: TorchModel, workshop: Workshop, search: Search, progress: Progress) -> list[Entry]:
    """Make every program, as many as there is time for, and compile each: compiling takes most of it."""
    cache = workshop.folder / CACHE
    entries: dict[str, Entry] = {}
    try:
        for program in PROGRAMS:
            write = partial(_write, program, model, workshop)
            entry = _make(program.name, Format.PT2, program.precision, write, workshop, search, progress)
            if entry is not None:
                entries[program.name] = entry
        for program in PROGRAMS:
            if program.name in entries:
                compile_it = partial(_compile, entries[program.name], model, workshop, cache)
                name = f"{program.name}{COMPILED}"
                entry = _make(name, Format.AOTINDUCTOR, program.precision, compile_it, workshop, search, progress)
                if entry is not None:
                    entries[name] = entry
    finally:
        shutil.rmtree(cache, ignore_errors=True)
    return list(entries.values())


def _make(
    name: str,
    format: Format,  # noqa: A002
    precision: Precision,
    make: Callable[[], Variant],
    workshop: Workshop,
    search: Search,
    progress: Progress,
) -> Entry | None:
    if not search.has_time():
        search.omit(name, str(search.budget))
        return None
    progress(f"making {name}", done=SHARE_OF_MAKING)
    key = content_key("torch", search.key, name)
    entry = recall(search.store.find(key, MadeVariant), workshop)
    if entry is None:
        try:
            entry = attempt(name, precision, workshop, make, format=format)
        except MissingExtra as error:  # the other route needs nothing of it
            planned = Variant(name=name, format=format, precision=precision, location="")
            return Entry(variant=planned, failure=str(error))
        search.store.keep(key, record(entry))
    return entry


def _write(program: Program, model: TorchModel, workshop: Workshop) -> Variant:
    target = workshop.folder / f"{program.name}{SUFFIXES[Format.PT2]}"
    step = program.write(model, target)
    return Variant(
        name=program.name,
        format=Format.PT2,
        precision=program.precision,
        location=str(target),
        recipe=Recipe(steps=(step,)),
    )


def _compile(written: Entry, model: TorchModel, workshop: Workshop, cache: Path) -> Variant:
    from forwardpass.optimize.torch_writers import write_compiled

    if written.failure:
        raise NothingGained(reason=f"{written.variant.name} was not made, so there is nothing to compile")
    name = f"{written.variant.name}{COMPILED}"
    target = workshop.folder / f"{name}{SUFFIXES[Format.AOTINDUCTOR]}"
    write_compiled(model, Path(written.variant.location), target, cache=cache)
    return Variant(
        name=name,
        format=Format.AOTINDUCTOR,
        precision=written.variant.precision,
        location=str(target),
        recipe=written.variant.recipe.then(Step(operation="compile", parameters=(("compiler", "Inductor"),))),
    )


def _float(model: TorchModel, target: Path) -> Step:
    from forwardpass.optimize.torch_writers import write_float_program

    write_float_program(model, target)
    return Step(operation="export", parameters=(("exporter", "torch.export"),))


def _int8_dynamic(model: TorchModel, target: Path) -> Step:
    from forwardpass.optimize.torch_writers import write_int8_dynamic_program

    write_int8_dynamic_program(model, target)
    parameters = (("writer", "torchao"), ("weights", "s8 per channel"), ("activations", "s8 per row"))
    return Step(operation="quantise-dynamic", parameters=parameters)


def _int8_weights(model: TorchModel, target: Path) -> Step:
    from forwardpass.optimize.torch_writers import write_int8_weights_program

    write_int8_weights_program(model, target)
    return Step(operation="quantise-weights", parameters=(("writer", "torchao"), ("weights", "s8 per channel")))


def _int8_static(model: TorchModel, target: Path) -> Step:
    from forwardpass.optimize.torch_writers import write_int8_static_program

    num_ranges = write_int8_static_program(model, target)
    return Step(
        operation="quantise-static",
        parameters=(
            ("writer", "torchao, X86InductorQuantizer"),
            ("weights", "s8 per channel"),
            ("activations", "u8"),
            ("num_calibration_samples", len(model.calibration)),
            ("num_ranges", num_ranges),
        ),
    )


PROGRAMS = (
    Program(name="torch-fp32", precision=Precision.FP32, write=_float),
    Program(name="torch-int8-dynamic", precision=Precision.INT8_DYNAMIC, write=_int8_dynamic),
    Program(name="torch-int8-weights", precision=Precision.INT8_WEIGHTS, write=_int8_weights),
    Program(name="torch-int8-static", precision=Precision.INT8_STATIC, write=_int8_static),
)
"""Float first: without any quantisation, staying with PyTorch is a possible winner."""
