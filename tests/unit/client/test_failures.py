"""Errors cross the wire as they are; what is tried again is only what the server did not do."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwardpass import errors
from forwardpass.client.failures import RetryPolicy, error_of
from forwardpass.client.receiving import Answer
from forwardpass.errors import ConversionError, ForwardpassError, RequestError
from forwardpass.serve.responses import error_response

SAMPLES: dict[str, Any] = {"int": 7, "float": 2.5, "str": "words", "Sequence[str]": ("a", "b"), "object": 3}
KINDS = [
    kind
    for kind in vars(errors).values()
    if inspect.isclass(kind) and issubclass(kind, ForwardpassError) and not issubclass(kind, ConversionError)
]


def made(kind: type[ForwardpassError]) -> ForwardpassError:
    """Make an error of made-up facts."""
    if "__init__" not in vars(kind):
        return kind()
    parameters = list(inspect.signature(kind).parameters.values())
    facts = {parameter.name: SAMPLES[str(parameter.annotation).partition(" |")[0]] for parameter in parameters}
    return kind(**facts)


def answer_of(status: int, body: bytes, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status=status, headers=named, body=body, keeps_alive=True)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_is_the_same_on_the_other_side(kind: type[ForwardpassError]) -> None:
    error = made(kind)
    response = error_response(error)
    came = error_of(answer_of(response.status, response.body), path="/v2", deadline_s=1.0)
    assert type(came) is kind
    assert str(came) == str(error)
    assert {name: tuple(value) if isinstance(value, list) else value for name, value in vars(came).items()} == vars(
        error
    )


@pytest.mark.parametrize(
    ("status", "kind", "sentence"),
    [
        (400, errors.MalformedRequest, "Malformed request: unexpected shape."),
        (
            401,
            errors.Unauthorized,
            "This needs a valid API key: unexpected shape. Send it as 'Authorization: Bearer KEY'.",
        ),
        (403, errors.Forbidden, "This is not allowed: unexpected shape."),
        (404, errors.NotFound, "There is no '/v2/models/x' (unexpected shape) here."),
        (413, errors.ServerFailed, "The server answered with status 413: unexpected shape."),
        (429, errors.Overloaded, "The server is overloaded: unexpected shape. Try again in 3 s."),
        (500, errors.ServerFailed, "The server answered with status 500: unexpected shape."),
        (503, errors.NotReady, "The server is not ready: unexpected shape."),
        (504, errors.DeadlineExceeded, "The request could not be answered within its deadline of 0.5 s."),
    ],
)
def test_another_servers_errors_keep_their_words(status: int, kind: type[RequestError], sentence: str) -> None:
    for body in (b'{"error":"unexpected\\n shape."}', b"unexpected shape."):
        came = error_of(answer_of(status, body, retry_after="3"), path="/v2/models/x", deadline_s=0.5)
        assert type(came) is kind
        assert str(came) == sentence


def test_a_server_without_words_and_one_of_another_version_are_understood() -> None:
    empty = error_of(answer_of(502, b""), path="/", deadline_s=1)
    assert str(empty) == "The server answered with status 502: it gives no reason."
    newer = answer_of(400, b'{"error":"No.","slug":"tensor-mismatch","facts":{"colour":"red"}}')
    assert str(error_of(newer, path="/", deadline_s=1)) == "Malformed request: No."


@given(status=st.integers(300, 599), body=st.binary(max_size=100), retry=st.text(max_size=8))
def test_any_answer_is_an_error_in_one_line(status: int, body: bytes, retry: str) -> None:
    error = error_of(answer_of(status, body, retry_after=retry), path="/", deadline_s=1)
    assert isinstance(error, ForwardpassError)
    assert "\n" not in str(error)


@given(
    status=st.sampled_from([400, 404, 429, 500, 503, 504]),
    wait=st.none() | st.integers(0, 100),
    num_tried=st.integers(1, 5),
    left_s=st.floats(0, 200),
    jitter=st.floats(0, 1),
)
def test_only_refusals_are_tried_again_and_never_past_the_deadline(
    status: int, wait: int | None, num_tried: int, left_s: float, jitter: float
) -> None:
    headers = {} if wait is None else {"retry_after": str(wait)}
    policy = RetryPolicy(max_retries=3)
    pause_s = policy.pause_s(answer_of(status, b"", **headers), num_tried=num_tried, left_s=left_s, jitter=jitter)
    may = status in (429, 503) and wait is not None and num_tried <= 3
    if pause_s is None:
        assert not may or (wait or 0) * 1.5 >= left_s or left_s == 0
    else:
        assert may
        assert wait is not None
        assert wait <= pause_s < left_s
