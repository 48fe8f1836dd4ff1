"""Pipelines are planned right, or every reason is told why not."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwardpass.core.tensors import Dimension, Signature, TensorSpec
from forwardpass.serve.planning import (
    PipelineConfig,
    PlannedStep,
    StepConfig,
    find_cycles,
    plan_pipeline,
    planning_order,
)


def spec(name: str, *shape: Dimension, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def signature(inputs: list[TensorSpec], outputs: list[TensorSpec]) -> Signature:
    return Signature(inputs=tuple(inputs), outputs=tuple(outputs))


MODELS = {
    "scale": signature([spec("pixels", "batch", 8)], [spec("scaled", "batch", 8)]),
    "encode": signature([spec("x", "batch", 8)], [spec("embedding", "batch", 4), spec("norm", "batch")]),
    "head": signature([spec("embedding", "batch", 4)], [spec("scores", "batch", 3)]),
    "both": signature([spec("embedding", "batch", 4), spec("pixels", "batch", 8)], [spec("scores", "batch", 3)]),
    "whole": signature([spec("x", "batch", 8, dtype="int64")], [spec("y", "batch", 8)]),
    "flat": signature([spec("x", "batch")], [spec("y", "batch", 8)]),
    "one": signature([spec("x", 1, 8)], [spec("y", 1, 8)]),
    "wide": signature([spec("x", "batch", 9)], [spec("y", "batch", 9)]),
    "any": signature([spec("x", "batch", "size")], [spec("y", "batch", "size")]),
}


def look(step: StepConfig) -> Signature | str:
    return MODELS.get(step.model, "there is no such model")


def pipeline(*steps: StepConfig) -> PipelineConfig:
    return PipelineConfig(name="p", steps=steps)


def step(model: str, inputs: dict[str, str] | None = None, outputs: dict[str, str] | None = None) -> StepConfig:
    return StepConfig(model=model, inputs=inputs or {}, outputs=outputs or {})


def test_names_are_mapped_and_only_what_is_needed_is_kept() -> None:
    plan, mistakes = plan_pipeline(
        pipeline(step("scale", {"pixels": "image"}), step("encode", {"x": "scaled"}), step("head")), look
    )
    assert mistakes == []
    assert plan is not None
    assert plan.signature == signature([spec("image", "batch", 8)], [spec("scores", "batch", 3)])
    assert plan.signature.is_batchable
    assert plan.steps == (
        PlannedStep(model="scale", version=None, takes=(("pixels", "image"),), gives=(("scaled", "scaled"),)),
        PlannedStep(model="encode", version=None, takes=(("x", "scaled"),), gives=(("embedding", "embedding"),)),
        PlannedStep(model="head", version=None, takes=(("embedding", "embedding"),), gives=(("scores", "scores"),)),
    )


def test_a_later_step_may_take_what_came_in_or_was_made_long_before() -> None:
    plan, mistakes = plan_pipeline(
        pipeline(step("scale"), step("encode", {"x": "scaled"}), step("both", outputs={"scores": "verdict"})), look
    )
    assert mistakes == []
    assert plan is not None
    assert [output.name for output in plan.signature.outputs] == ["verdict"]


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([step("scale"), step("nobody")], "step 2 (nobody): there is no such model"),
        (
            [step("scale"), step("head")],
            (
                "step 2 (head): nothing before it gives its input 'embedding'; there are pixels, scaled. "
                'Write inputs = {embedding = "…"}'
            ),
        ),
        (
            [step("scale"), step("head", {"embedding": "scalde"})],
            "step 2 (head): nothing before it is called 'scalde', for its input 'embedding'; there are pixels, scaled",
        ),
        (
            [step("scale"), step("whole", {"x": "scaled"})],
            "step 2 (whole): its input 'x' is int64[batch, 8], but 'scaled' is float32[batch, 8]: the dtypes differ",
        ),
        (
            [step("scale"), step("wide", {"x": "scaled"})],
            "step 2 (wide): its input 'x' is float32[batch, 9], but 'scaled' is float32[batch, 8]: axis 1 differs",
        ),
        (
            [step("scale"), step("flat", {"x": "scaled"})],
            "step 2 (flat): its input 'x' is float32[batch], but 'scaled' is float32[batch, 8]: 2 axes are not 1",
        ),
        (
            [step("scale"), step("one", {"x": "scaled"})],
            (
                "step 2 (one): its input 'x' is float32[1, 8], but 'scaled' is float32[batch, 8]: "
                "it takes 1 row at a time, not any number"
            ),
        ),
        ([step("scale", {"x": "y"})], "step 1 (scale): it has no input 'x'; there are pixels"),
        ([step("scale", None, {"y": "z"})], "step 1 (scale): it has no output 'y'; there are scaled"),
        (
            [step("encode", None, {"norm": "embedding"})],
            "step 1 (encode): two of its outputs are called 'embedding'",
        ),
    ],
)
def test_a_mistake_is_told(steps: list[StepConfig], said: str) -> None:
    plan, mistakes = plan_pipeline(pipeline(*steps), look)
    assert plan is None
    assert mistakes == [f"pipeline 'p', {said}"]


def test_all_mistakes_are_told_at_once_but_none_that_follows_from_another() -> None:
    _, mistakes = plan_pipeline(
        pipeline(step("nobody"), step("head", {"scores": "x"}), step("scale", {"pixels": "embedding"}), step("no")),
        look,
    )
    assert [mistake.partition(": ")[0] for mistake in mistakes] == [
        "pipeline 'p', step 1 (nobody)",
        "pipeline 'p', step 2 (head)",
        "pipeline 'p', step 4 (no)",
    ]


def test_fixed_rows_flow_into_any_number_of_them() -> None:
    plan, mistakes = plan_pipeline(pipeline(step("one"), step("any", {"x": "y"})), look)
    assert mistakes == []
    assert plan is not None
    assert not plan.signature.is_batchable


@given(st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=3)))
def test_circles_are_found_exactly_where_they_are(steps: dict[str, list[str]]) -> None:
    configs = [
        PipelineConfig(name=name, steps=tuple(StepConfig(model=model) for model in models))
        for name, models in steps.items()
    ]

    def reaches(start: str, goal: str) -> bool:
        seen: set[str] = set()
        todo = list(steps.get(start, ()))
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo += steps.get(name, ())
        return goal in seen

    found = find_cycles(configs)
    for circle in found:
        assert all(after in steps[before] for before, after in zip(circle, (*circle[1:], circle[0]), strict=True))
    assert bool(found) == any(reaches(name, name) for name in steps)
    ordered = [config.name for config in planning_order(configs)]
    assert sorted(ordered) == sorted(steps)
    if not found:
        assert all(
            ordered.index(inner) < ordered.index(name) for name in steps for inner in steps[name] if inner in steps
        )


SHAPES = st.lists(st.sampled_from(["batch", "a", 1, 2]), min_size=1, max_size=2).map(tuple)


@given(st.lists(st.tuples(SHAPES, SHAPES), min_size=2, max_size=4))
def test_a_plan_runs_wherever_its_shapes_meet(
    shapes: list[tuple[tuple[Dimension, ...], tuple[Dimension, ...]]],
) -> None:
    """What is planned takes at every step a tensor that the step before it gives, of the same number of axes."""
    models = {
        f"m{number}": signature([spec("x", *taken)], [spec("x", *given_)])
        for number, (taken, given_) in enumerate(shapes)
    }
    known: Callable[[StepConfig], Signature | str] = lambda step: models[step.model]  # noqa: E731
    plan, mistakes = plan_pipeline(PipelineConfig(name="p", steps=tuple(map(step, models))), known)
    assert (plan is None) == bool(mistakes)
    if plan is not None:
        for (_, before), (after, _) in pairwise(shapes):
            assert len(before) == len(after)
            assert all(
                one == other or isinstance(one, str) or isinstance(other, str)
                for one, other in zip(before, after, strict=True)
            )
