"""Distillation: a smaller student learns to answer like its teacher, from samples that need no labels."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from forwardpass.core.protocols import Progress
from forwardpass.core.samples import Samples
from forwardpass.errors import InvalidOption, InvalidStudent
from forwardpass.lean.counting import count_multiply_adds, example_of
from forwardpass.lean.planning import kept_layers
from forwardpass.lean.training import Training, check_student, train_module
from forwardpass.lean.values import PruneSettings, StudentSettings, TrainSettings
from forwardpass.runtimes.torch import load_module

__all__ = ["Distillation", "Student", "check_student_of", "distil_module", "open_student"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Student:
    """Who learns, and which layers of teacher and student should agree (teacher's name, student's name)."""

    module: nn.Module
    name: str
    pairs: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Distillation:
    """The student after its training, and the multiply-adds per row of its teacher and itself."""

    module: nn.Module
    num_multiply_adds_teacher: int
    num_multiply_adds: int
    training: Training


def open_student(teacher: nn.Module, samples: Samples, settings: StudentSettings, *, progress: Progress) -> Student:
    """Return the user's student, or one that is made from the teacher: every n-th layer, narrower layers, or both.

    Raises:
        InvalidReference: the user's factory does not give a module.
        InvalidStudent: there are no repeated layers to leave out, or the outputs do not match the teacher's.
        CannotPrune: the layers cannot be made narrower.
    """
    if settings.reference:
        student = Student(module=load_module(settings.reference), name=settings.reference)
    else:
        student = _derived(teacher, samples, settings, progress)
    check_student(student.module, teacher, samples, name=student.name)
    return student


def check_student_of(teacher: nn.Module, samples: Samples, settings: StudentSettings) -> None:
    """Raise what `open_student` would, as far as it takes no time: how narrow layers can be is not tried.

    Raises:
        InvalidReference, InvalidStudent, CannotPrune: as there.
        InvalidOption: as many layers are to stay as there are.
    """
    if settings.num_layers or settings.reference:
        open_student(teacher, samples, replace(settings, width=None), progress=_unheard)
    if settings.width:
        from forwardpass.lean.pruning import check_prunable

        check_prunable(teacher, samples, _narrower(settings.width))


def _unheard(text: str, *, done: float) -> None:
    """Let progress pass: nothing here takes long."""


def distil_module(
    teacher: nn.Module,
    student: Student,
    samples: Samples,
    *,
    settings: TrainSettings,
    checkpoint: Path | None = None,
    progress: Progress,
) -> Distillation:
    """Teach a copy of the student: outputs and paired layers like the teacher's, and labels where there are any.

    Raises:
        InvalidStudent: its outputs do not match the teacher's.
    """
    module = copy.deepcopy(student.module)
    training = train_module(
        module,
        samples,
        teacher=teacher,
        settings=settings,
        pairs=student.pairs,
        checkpoint=checkpoint,
        progress=progress,
    )
    example = example_of(samples)
    return Distillation(
        module=module,
        num_multiply_adds_teacher=count_multiply_adds(teacher, example),
        num_multiply_adds=count_multiply_adds(module, example),
        training=training,
    )


def _derived(teacher: nn.Module, samples: Samples, settings: StudentSettings, progress: Progress) -> Student:
    student = Student(module=copy.deepcopy(teacher), name=f"{type(teacher).__name__} with fewer layers")
    if settings.num_layers:
        student = _with_fewer_layers(student, settings.num_layers)
    if settings.width:
        from forwardpass.lean.pruning import prune_module

        narrower = prune_module(student.module, samples, settings=_narrower(settings.width), progress=progress).module
        student = Student(module=narrower, name=student.name, pairs=student.pairs)
    return student


def _narrower(width: float) -> PruneSettings:
    return PruneSettings(share=1 - width)


def _with_fewer_layers(student: Student, num_layers: int) -> Student:
    name, layers = _repeated_layers(student.module)
    if num_layers >= len(layers):
        raise InvalidOption(
            option="--distill",
            value=f"layers={num_layers}",
            expected=f"fewer than the {len(layers)} layers of '{name}'",
        )
    kept = kept_layers(len(layers), num_layers)
    inner = (
        type(layers)(*[layers[index] for index in kept])
        if isinstance(layers, nn.Sequential)
        else nn.ModuleList([layers[index] for index in kept])
    )
    parent, _, last = name.rpartition(".")
    holder = student.module.get_submodule(parent)
    setattr(holder, last, inner)
    if getattr(holder, f"num_{last}", None) == len(layers):
        setattr(holder, f"num_{last}", num_layers)
    pairs = tuple((f"{name}.{index}", f"{name}.{number}") for number, index in enumerate(kept))
    return Student(module=student.module, name=student.name, pairs=pairs)


def _repeated_layers(module: nn.Module) -> tuple[str, nn.Sequential | nn.ModuleList]:
    """Return the longest list of layers that are all alike, so that any of them can follow any other."""
    lists = [(name, part) for name, part in _lists_of(module) if len(part) > 1 and _are_alike(part)]
    if not lists:
        raise InvalidStudent(
            student=type(module).__name__,
            reason="it has no ModuleList or Sequential of layers that are all alike, from which some could be left out",
            hint="Give a smaller network of your own with --distill package.module:factory, or --distill width=50%.",
        )
    return max(lists, key=lambda pair: len(pair[1]))


def _lists_of(module: nn.Module) -> Iterator[tuple[str, nn.Sequential | nn.ModuleList]]:
    for name, part in module.named_modules():
        if name and isinstance(part, nn.Sequential | nn.ModuleList):
            yield name, part


def _are_alike(layers: nn.Sequential | nn.ModuleList) -> bool:
    shapes = [{name: tensor.shape for name, tensor in layer.state_dict().items()} for layer in layers]
    return (
        bool(shapes[0]) and all(type(it) is type(layers[0]) for it in layers) and all(it == shapes[0] for it in shapes)
    )
