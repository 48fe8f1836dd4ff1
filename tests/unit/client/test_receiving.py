"""Answers arrive in pieces of any size; whatever a peer sends is an answer or a BadAnswer."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwardpass.client.receiving import MAX_HEAD_BYTES, Answer, BadAnswer, Receiver


def feed(data: bytes, sizes: list[int], *, ends: bool = False) -> list[Answer]:
    """Give a receiver the data in pieces of these sizes, over and over."""
    receiver, answers, at, turn = Receiver(), [], 0, 0
    while at < len(data):
        room = receiver.buffer()
        assert len(room) > 0
        piece = data[at : at + min(sizes[turn % len(sizes)], len(room))]
        room[: len(piece)] = piece
        at, turn = at + len(piece), turn + 1
        if (answer := receiver.received(len(piece))) is not None:
            answers.append(answer)
    if ends and (last := receiver.ended()) is not None:
        answers.append(last)
    return answers


def sized(body: bytes, *headers: str) -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers, "", ""]).encode() + body


def chunked(pieces: list[bytes]) -> bytes:
    parts = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + parts + b"0\r\n\r\n"


SIZES = st.lists(st.integers(1, 300), min_size=1, max_size=5)


@given(body=st.binary(max_size=400), sizes=SIZES)
def test_bodies_arrive_whole_however_they_are_cut(body: bytes, sizes: list[int]) -> None:
    for data in (sized(body), chunked([body[:7], body[7:]]), b"HTTP/1.1 103 Early Hints\r\n\r\n" + sized(body)):
        (answer,) = feed(data, sizes)
        assert (answer.status, bytes(answer.body), answer.keeps_alive) == (200, body, True)
    (last,) = feed(b"HTTP/1.1 200 OK\r\n\r\n" + body, sizes, ends=True)
    assert (bytes(last.body), last.keeps_alive) == (body, False)


@given(json_length=st.integers(0, 90), rest=st.binary(max_size=200), sizes=SIZES)
def test_what_follows_the_json_is_aligned(json_length: int, rest: bytes, sizes: list[int]) -> None:
    body = b" " * json_length + rest
    (answer,) = feed(sized(body, f"Inference-Header-Content-Length: {json_length}"), sizes)
    assert bytes(answer.body) == body
    view = np.frombuffer(answer.body, np.uint8)[json_length:]
    assert not len(rest) or view.ctypes.data % 64 == 0


@given(noise=st.binary(max_size=300), sizes=SIZES)
def test_noise_is_never_more_than_a_bad_answer(noise: bytes, sizes: list[int]) -> None:
    for data in (noise, b"HTTP/1.1 200 OK\r\n" + noise, chunked([])[:-5] + noise):
        with suppress(BadAnswer):
            feed(data, sizes, ends=True)


@given(at=st.integers(0, 200), to=st.integers(0, 255), sizes=SIZES)
def test_a_changed_byte_is_never_more_than_a_bad_answer(at: int, to: int, sizes: list[int]) -> None:
    for data in (sized(b"x" * 20, "Retry-After: 1"), chunked([b"x" * 20, b"y"])):
        changed = bytearray(data)
        changed[at % len(data)] = to
        with suppress(BadAnswer):
            feed(bytes(changed), sizes, ends=True)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * MAX_HEAD_BYTES,
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nxx",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\n",
        b"220 smtp.example.org ESMTP\r\n\r\n",
    ],
)
def test_what_cannot_be_an_answer_is_refused(data: bytes) -> None:
    with pytest.raises(BadAnswer):
        feed(data, [len(data)])


def test_answers_without_a_body_end_with_their_headers() -> None:
    answers = feed(b"HTTP/1.1 204 No Content\r\n\r\n" + sized(b"x"), [27, 1000])
    assert [(answer.status, bytes(answer.body)) for answer in answers] == [(204, b""), (200, b"x")]
