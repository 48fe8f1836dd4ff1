"""What a pipeline of models is, and whether its steps fit together; knows no model that runs, only signatures.

The tensors of a pipeline have names of their own. The first step's inputs are the pipeline's; every step adds its
outputs; a step takes its inputs from what is there by then; the last step's outputs are the pipeline's. A model's own
names are used unless the `inputs` or `outputs` of the step say otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from forwardpass.core.slo import Slo
from forwardpass.core.tensors import Signature, TensorSpec, misfit

__all__ = [
    "Names",
    "PipelineConfig",
    "PipelinePlan",
    "PlannedStep",
    "StepConfig",
    "find_cycles",
    "plan_pipeline",
    "planning_order",
    "tell_cycles",
]

Names = tuple[tuple[str, str], ...]
"""Pairs of names: that of the step's model, and that of the pipeline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepConfig:
    """One step: a model or another pipeline, a version or label of it, and what its tensors are called here."""

    model: str
    version: str | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineConfig:
    """Steps that are served under one name."""

    name: str
    steps: tuple[StepConfig, ...]
    timeout_s: float | None = None
    """Deadline of a request that names none, for all steps together; without it the target's limit, or 30 seconds."""
    slo: Slo | None = None
    max_in_flight: int = 256
    """Requests that may be on their way through the steps at once; further ones are refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStep:
    """A step with the tensors that it takes and those of its outputs that are needed afterwards."""

    model: str
    version: str | None
    takes: Names
    gives: Names


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelinePlan:
    """Steps that fit together, and what they are from outside."""

    signature: Signature
    steps: tuple[PlannedStep, ...]


def plan_pipeline(
    config: PipelineConfig, signature_of: Callable[[StepConfig], Signature | str]
) -> tuple[PipelinePlan | None, list[str]]:
    """Return how to run a pipeline, or every reason why it cannot be run.

    `signature_of` returns what a step's model takes and gives, or why that is not known.
    """
    planner = _Planner(config)
    for number, step in enumerate(config.steps):
        found = signature_of(step)
        if isinstance(found, str):
            planner.note(number, found)
            planner.is_partial = True
        else:
            planner.add(number, step, found)
    return (None if planner.mistakes else planner.plan()), planner.mistakes


def find_cycles(configs: Sequence[PipelineConfig]) -> list[tuple[str, ...]]:
    """Return the pipelines that lead back to themselves, each circle once and beginning with its first name.

    >>> steps = {"a": "b", "b": "a", "c": "a"}
    >>> find_cycles([PipelineConfig(name=name, steps=(StepConfig(model=to),)) for name, to in steps.items()])
    [('a', 'b')]
    """
    following = {config.name: [step.model for step in config.steps] for config in configs}
    circles: dict[frozenset[str], tuple[str, ...]] = {}
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            circle = path[path.index(name) :]
            circles.setdefault(frozenset(circle), circle)
        elif name in following and name not in done:
            for model in following[name]:
                walk(model, (*path, name))
            done.add(name)

    for name in following:
        walk(name, ())
    return list(circles.values())


def tell_cycles(configs: Sequence[PipelineConfig]) -> list[str]:
    """Return a mistake for each circle of pipelines."""
    circles = find_cycles(configs)
    return [f"the pipelines lead back to themselves: {' → '.join((*circle, circle[0]))}" for circle in circles]


def planning_order(configs: Sequence[PipelineConfig]) -> list[PipelineConfig]:
    """Return pipelines after those that they are made of; whoever is in a circle or needs one comes last."""
    waiting = {config.name: config for config in configs}
    ordered: list[PipelineConfig] = []
    while waiting:
        ready = [config for config in waiting.values() if not any(step.model in waiting for step in config.steps)]
        ordered += ready or waiting.values()
        waiting = {name: config for name, config in waiting.items() if ready and config not in ready}
    return ordered


class _Planner:
    """Goes through the steps and keeps what is known of the tensors so far."""

    def __init__(self, config: PipelineConfig) -> None:
        self._config = config
        self._tensors: dict[str, TensorSpec] = {}
        self._signatures: list[Signature] = []
        self.is_partial = False
        """A step's outputs are not known, so that nothing can be said to be missing."""
        self.mistakes: list[str] = []

    def note(self, number: int, mistake: str) -> None:
        step = self._config.steps[number]
        self.mistakes.append(f"pipeline '{self._config.name}', step {number + 1} ({step.model}): {mistake}")

    def add(self, number: int, step: StepConfig, signature: Signature) -> None:
        self._signatures.append(signature)
        for word, mapping, specs in (
            ("input", step.inputs, signature.inputs),
            ("output", step.outputs, signature.outputs),
        ):
            known = [spec.name for spec in specs]
            for name in mapping:
                if name not in known:
                    self.note(number, f"it has no {word} '{name}'; there are {', '.join(known)}")
        for spec in signature.inputs:
            self._take(number, spec, step.inputs.get(spec.name, spec.name))
        names = [step.outputs.get(spec.name, spec.name) for spec in signature.outputs]
        for name in dict.fromkeys(name for name in names if names.count(name) > 1):
            self.note(number, f"two of its outputs are called '{name}'")
        self._tensors |= {name: replace(spec, name=name) for name, spec in zip(names, signature.outputs, strict=True)}

    def _take(self, number: int, spec: TensorSpec, name: str) -> None:
        if number == 0:
            given = self._tensors.setdefault(name, replace(spec, name=name))
        elif name in self._tensors:
            given = self._tensors[name]
        else:
            if not self.is_partial:
                there = f"there are {', '.join(self._tensors)}"
                if name == spec.name:
                    hint = f'Write inputs = {{{name} = "…"}}'
                    self.note(number, f"nothing before it gives its input '{name}'; {there}. {hint}")
                else:
                    self.note(number, f"nothing before it is called '{name}', for its input '{spec.name}'; {there}")
            return
        reason = misfit(given, spec)
        if reason:
            self.note(number, f"its input '{spec.name}' is {spec}, but '{name}' is {given}: {reason}")

    def plan(self) -> PipelinePlan:
        """Return the plan; there were no mistakes."""
        steps = self._config.steps
        first, last = self._signatures[0], self._signatures[-1]
        inputs = {step_name: replace(spec, name=step_name) for step_name, spec in _named(first.inputs, steps[0].inputs)}
        outputs = tuple(replace(spec, name=name) for name, spec in _named(last.outputs, steps[-1].outputs))
        planned: list[PlannedStep] = []
        needed = {spec.name for spec in outputs}
        for step, signature in zip(reversed(steps), reversed(self._signatures), strict=True):
            gives = [(spec.name, name) for name, spec in _named(signature.outputs, step.outputs) if name in needed]
            takes = [(spec.name, name) for name, spec in _named(signature.inputs, step.inputs)]
            needed = (needed - {name for _, name in gives}) | {name for _, name in takes}
            planned.append(PlannedStep(model=step.model, version=step.version, takes=tuple(takes), gives=tuple(gives)))
        return PipelinePlan(
            signature=Signature(inputs=tuple(inputs.values()), outputs=outputs), steps=tuple(reversed(planned))
        )


def _named(specs: Sequence[TensorSpec], mapping: Mapping[str, str]) -> Iterator[tuple[str, TensorSpec]]:
    return ((mapping.get(spec.name, spec.name), spec) for spec in specs)
