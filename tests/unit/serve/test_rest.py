"""What the routes for inference ask of a model, and what they tell the client of that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from forwardpass.core.protocols import Encoder
from forwardpass.core.tensors import Array, Signature, TensorSpec
from forwardpass.errors import DeadlineExceeded, RequestError
from forwardpass.serve.exchange import Exchange, Response
from forwardpass.serve.predicting import PredictRoutes
from forwardpass.serve.request import Answer
from forwardpass.serve.rest import InferRoutes
from forwardpass.serve.served import Served

SPEC = TensorSpec(name="x", dtype="float32", shape=("batch", 2))
SIGNATURE = Signature(inputs=(SPEC,), outputs=(SPEC,))


@dataclass(eq=False)
class LateModel:
    """Takes a request and answers that its time is over."""

    signature: Signature = SIGNATURE
    timeout_s: float = 3.0
    given_s: float | None = None
    encoder: Encoder | None = None
    decoder: None = None

    def version(self, name: str | None) -> LateModel:
        return self

    def submit(
        self, version: object, tensors: dict[str, Array], num_rows: int, answer: Answer, **options: Any
    ) -> Callable[[], None]:
        self.given_s = options["timeout_s"]
        answer(DeadlineExceeded(deadline_s=self.timeout_s if self.given_s is None else self.given_s))
        return lambda: None

    def hold(self) -> None:
        """Nothing would stop it."""

    release = hold

    def failed(self, error: RequestError) -> None:
        """Nobody counts."""


class PlainEncoder:
    """Takes rows of numbers by another name."""

    def encode(self, request: Mapping[str, object]) -> dict[str, Array]:
        return {"x": np.array([[1.0, 2.0]], np.float32)}


@dataclass(eq=False)
class FakeExchange:
    """A request that has lain in the socket for a while."""

    waited_s: float
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[1,2]}]}'
    trace: None = None
    is_abandoned: bool = False
    on_abandoned: object = None
    answers: list[Response] = field(default_factory=list)

    def respond(self, response: Response) -> None:
        self.answers.append(response)


def infer(model: LateModel, exchange: FakeExchange) -> None:
    """Ask by the protocol."""
    InferRoutes().infer(cast(Served, model), None, cast(Exchange, exchange))


def predict(model: LateModel, exchange: FakeExchange) -> None:
    """Ask by the friendly route."""

    async def ask() -> None:
        routes = PredictRoutes()
        routes.predict(cast(Served, model), None, cast(Exchange, exchange))
        async with asyncio.timeout(30):
            while not exchange.answers:
                await asyncio.sleep(0.001)
        routes.close()

    exchange.body = b'{"inputs":{"x":[[1,2]]}}'
    exchange.headers[b"content-type"] = b"application/json"
    asyncio.run(ask())


def predict_after_encoding(model: LateModel, exchange: FakeExchange) -> None:
    """Ask by the friendly route of a model with a processor."""
    model.encoder = PlainEncoder()
    predict(model, exchange)


@pytest.mark.parametrize("ask", [infer, predict, predict_after_encoding])
@pytest.mark.parametrize("waited_s", [0.0, 0.0039, 1.0])
@pytest.mark.parametrize(("asked_ms", "told"), [(b"20000", "20"), (None, "3")])
def test_a_deadline_is_told_as_it_was_asked_for_and_shortened_by_what_has_passed(
    ask: Callable[[LateModel, FakeExchange], None], waited_s: float, asked_ms: bytes | None, told: str
) -> None:
    model = LateModel()
    exchange = FakeExchange(waited_s, {} if asked_ms is None else {b"x-request-timeout-ms": asked_ms})
    begun_s = time.monotonic()
    ask(model, exchange)
    taken_s = time.monotonic() - begun_s
    (answer,) = exchange.answers
    assert answer.status == 504
    fields = msgspec.json.decode(answer.body)
    assert fields["error"] == f"The request could not be answered within its deadline of {told} s."
    assert fields["facts"] == {"deadline_s": float(told)}
    if asked_ms is None and not waited_s:
        assert model.given_s is None, "the model's own"
    else:
        assert model.given_s is not None
        assert float(told) - waited_s - taken_s - 1e-6 <= model.given_s <= float(told) - waited_s + 1e-6


@pytest.mark.parametrize("ask", [predict, predict_after_encoding])
def test_a_request_whose_time_is_over_before_it_is_read_is_told_so(
    ask: Callable[[LateModel, FakeExchange], None],
) -> None:
    exchange = FakeExchange(4.0)
    ask(LateModel(), exchange)
    (answer,) = exchange.answers
    assert answer.status == 504
    assert msgspec.json.decode(answer.body)["facts"] == {"deadline_s": 3.0}
