"""What the infer route asks of a model, and what it tells the client of that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec
import pytest

from forwardpass.core.tensors import Array, Signature, TensorSpec
from forwardpass.errors import DeadlineExceeded
from forwardpass.serve.exchange import Exchange, Response
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

    def version(self, name: str | None) -> LateModel:
        return self

    def submit(
        self, version: object, tensors: dict[str, Array], num_rows: int, answer: Answer, **options: Any
    ) -> Callable[[], None]:
        self.given_s = options["timeout_s"]
        answer(DeadlineExceeded(deadline_s=self.timeout_s if self.given_s is None else self.given_s))
        return lambda: None


@dataclass(eq=False)
class FakeExchange:
    """A request that has lain in the socket for a while."""

    waited_s: float
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[1,2]}]}'
    trace: None = None
    on_abandoned: object = None
    answers: list[Response] = field(default_factory=list)

    def respond(self, response: Response) -> None:
        self.answers.append(response)


@pytest.mark.parametrize("waited_s", [0.0, 0.0039, 0.02])
@pytest.mark.parametrize(("asked_ms", "told"), [(b"50", "0.05"), (None, "3")])
def test_a_deadline_is_told_as_it_was_asked_for_and_shortened_by_what_has_passed(
    waited_s: float, asked_ms: bytes | None, told: str
) -> None:
    model = LateModel()
    exchange = FakeExchange(waited_s, {} if asked_ms is None else {b"x-request-timeout-ms": asked_ms})
    InferRoutes().infer(cast(Served, model), None, cast(Exchange, exchange))
    (answer,) = exchange.answers
    assert answer.status == 504
    fields = msgspec.json.decode(answer.body)
    assert fields["error"] == f"The request could not be answered within its deadline of {told} s."
    assert fields["facts"] == {"deadline_s": float(told)}
    asked_s = 0.05 if asked_ms else None
    if asked_s is None and not waited_s:
        assert model.given_s is None, "the model's own"
    else:
        assert model.given_s == pytest.approx((asked_s or 3.0) - waited_s)
