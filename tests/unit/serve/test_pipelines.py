"""Whatever its models do, a request of a pipeline is answered once or given up, and nothing is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from forwardpass.core.tensors import Array, Signature, TensorSpec
from forwardpass.errors import InputRejected, Overloaded, RequestError
from forwardpass.serve.pipelines import Pipeline
from forwardpass.serve.planning import PipelineConfig, StepConfig, plan_pipeline
from forwardpass.serve.request import Answer, Result
from forwardpass.serve.served import Served

SPEC = TensorSpec(name="x", dtype="float32", shape=("batch", 2))
SIGNATURE = Signature(inputs=(SPEC,), outputs=(SPEC,))
NUM_STEPS, MAX_IN_FLIGHT = 3, 4
TIMEOUT_S = 1000.0


@dataclass(eq=False, frozen=True)
class Waiting:
    """A request that a model has taken."""

    tensor: Array
    answer: Answer
    timeout_s: float


@dataclass(eq=False)
class FakeModel:
    """Adds one, when the test lets it. Its outputs are views of memory that is used again, as a worker's are."""

    name: str
    signature: Signature = SIGNATURE
    encoder: None = None
    decoder: None = None
    names: tuple[str, ...] = ("1",)
    num_held: int = 0
    waiting: list[Waiting] = field(default_factory=list)
    refusal: RequestError | None = None
    arena: Array = field(default_factory=lambda: np.zeros((1, 2), np.float32))

    def version(self, name: str | None) -> FakeModel:
        return self

    def hold(self) -> None:
        self.num_held += 1

    def release(self) -> None:
        self.num_held -= 1
        assert self.num_held >= 0

    def submit(
        self, version: object, tensors: dict[str, Array], num_rows: int, answer: Answer, **options: Any
    ) -> Callable[[], None]:
        assert self.num_held > 0, "a version is held until its request is there"
        if self.refusal is not None:
            refusal, self.refusal = self.refusal, None
            raise refusal
        entry = Waiting(tensors["x"], answer, options["timeout_s"])
        self.waiting.append(entry)
        return lambda: self.waiting.remove(entry) if entry in self.waiting else None

    def answer(self, error: RequestError | None) -> None:
        request = self.waiting.pop(0)
        self.arena[:] = request.tensor + 1
        request.answer({"x": self.arena[:]} if error is None else error)
        self.arena[:] = np.nan


@dataclass(eq=False)
class Asked:
    """What the client of one request has heard."""

    number: int
    results: list[Any] = field(default_factory=list)
    give_up: Callable[[], None] | None = None
    is_given_up: bool = False

    def answer(self, result: Result) -> None:
        error = isinstance(result, RequestError)
        self.results.append(result if error else result["x"].copy())  # type: ignore[index]

    @property
    def is_open(self) -> bool:
        return not self.results and not self.is_given_up


ACTIONS = st.lists(
    st.one_of(
        st.just(("ask", 0)),
        st.tuples(st.sampled_from(["answer", "fail", "refuse"]), st.integers(0, NUM_STEPS - 1)),
        st.tuples(st.just("leave"), st.integers(0, 20)),
    ),
    max_size=60,
)


@given(ACTIONS)
def test_every_request_is_answered_once_or_given_up(actions: list[tuple[str, int]]) -> None:
    asyncio.run(_run(actions))


async def _run(actions: list[tuple[str, int]]) -> None:
    models = [FakeModel(f"m{number}") for number in range(NUM_STEPS)]
    config = PipelineConfig(
        name="p", steps=tuple(StepConfig(model=model.name) for model in models), max_in_flight=MAX_IN_FLIGHT
    )
    by_name = {model.name: model for model in models}
    pipeline = Pipeline(config, lambda name: cast(Served, by_name[name]))
    plan, _ = plan_pipeline(config, lambda step: SIGNATURE)
    assert plan is not None
    pipeline.use(plan)
    asked: list[Asked] = []
    for action, number in actions:
        if action == "ask":
            _ask(pipeline, asked)
        elif action == "leave" and number < len(asked) and asked[number].is_open:
            client = asked[number]
            client.is_given_up = True
            assert client.give_up is not None
            client.give_up()
        elif action == "refuse":
            models[number % NUM_STEPS].refusal = Overloaded(retry_after_s=1.0, reason="it is full")
        elif action in ("answer", "fail") and models[number].waiting:
            models[number].answer(InputRejected(model="m", kind="x") if action == "fail" else None)
        await asyncio.sleep(0)
        assert pipeline.num_in_flight == sum(client.is_open for client in asked) <= MAX_IN_FLIGHT
        assert sum(len(model.waiting) for model in models) == pipeline.num_in_flight
    for model in models:
        model.refusal = None
    while any(client.is_open for client in asked):
        next(model for model in models if model.waiting).answer(None)
        await asyncio.sleep(0)
    assert pipeline.num_in_flight == 0
    assert [model.num_held for model in models] == [0] * NUM_STEPS
    assert all(len(client.results) == (0 if client.is_given_up else 1) for client in asked)
    for client in asked:
        for result in client.results:
            if not isinstance(result, RequestError):
                np.testing.assert_array_equal(result, [[client.number + NUM_STEPS] * 2])
    counted = sum(pipeline.metrics.outcomes.values())
    assert counted == sum(len(client.results) for client in asked)


def _ask(pipeline: Pipeline, asked: list[Asked]) -> None:
    client = Asked(number=len(asked))
    tensors = {"x": np.full((1, 2), client.number, np.float32)}
    asked.append(client)
    passage = pipeline.version(None)
    try:
        client.give_up = pipeline.submit(passage, tensors, 1, client.answer, timeout_s=TIMEOUT_S)
    except RequestError as error:
        client.results.append(error)


def test_each_step_gets_what_is_left_of_the_time() -> None:
    async def run() -> list[float]:
        models = {name: FakeModel(name) for name in ("a", "b")}
        config = PipelineConfig(name="p", steps=(StepConfig(model="a"), StepConfig(model="b")))
        pipeline = Pipeline(config, lambda name: cast(Served, models[name]))
        plan, _ = plan_pipeline(config, lambda step: SIGNATURE)
        assert plan is not None
        pipeline.use(plan)
        asked: list[Asked] = []
        _ask(pipeline, asked)
        await asyncio.sleep(0.02)
        first = models["a"].waiting[0].timeout_s
        models["a"].answer(None)
        await asyncio.sleep(0)
        second = models["b"].waiting[0].timeout_s
        return [first, second]

    first, second = asyncio.run(run())
    assert first <= TIMEOUT_S
    assert second <= first - 0.02
