"""Errors as HTTP responses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwardpass.errors import Overloaded, RateLimited
from forwardpass.serve.responses import error_response


@given(st.floats(0.0, 1e6))
def test_who_comes_back_when_the_header_says_does_not_come_too_soon(seconds: float) -> None:
    for error in (
        Overloaded(retry_after_s=seconds, reason="it is full"),
        RateLimited(retry_after_s=seconds, requests_per_s=1.0),
    ):
        told_s = int(dict(error_response(error).headers)["retry-after"])
        assert max(1.0, seconds) <= told_s == pytest.approx(seconds, abs=1.0)
