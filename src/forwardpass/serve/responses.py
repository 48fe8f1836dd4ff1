"""Documents and errors as HTTP responses."""

from __future__ import annotations

import math

import msgspec

from forwardpass.errors import (
    BodyTooLarge,
    DeadlineExceeded,
    Forbidden,
    ForwardpassError,
    InputRejected,
    MalformedRequest,
    NotAcceptable,
    NotFound,
    NotReady,
    OutOfMemory,
    Overloaded,
    RateLimited,
    RequestError,
    RequestQuarantined,
    TensorMismatch,
    Unauthorized,
    UnsupportedMediaType,
)
from forwardpass.serve.exchange import Response

__all__ = [
    "STATUSES",
    "error_document",
    "error_response",
    "grpc_code",
    "json_response",
    "message_response",
    "not_allowed",
]

STATUSES: tuple[tuple[type[ForwardpassError], int, str], ...] = (
    (MalformedRequest, 400, "INVALID_ARGUMENT"),
    (TensorMismatch, 400, "INVALID_ARGUMENT"),
    (InputRejected, 400, "INVALID_ARGUMENT"),
    (Unauthorized, 401, "UNAUTHENTICATED"),
    (Forbidden, 403, "PERMISSION_DENIED"),
    (NotFound, 404, "NOT_FOUND"),
    (NotAcceptable, 406, "INVALID_ARGUMENT"),
    (BodyTooLarge, 413, "RESOURCE_EXHAUSTED"),
    (UnsupportedMediaType, 415, "INVALID_ARGUMENT"),
    (RequestQuarantined, 422, "FAILED_PRECONDITION"),
    (Overloaded, 429, "RESOURCE_EXHAUSTED"),
    (RateLimited, 429, "RESOURCE_EXHAUSTED"),
    (NotReady, 503, "UNAVAILABLE"),
    (OutOfMemory, 503, "RESOURCE_EXHAUSTED"),
    (DeadlineExceeded, 504, "DEADLINE_EXCEEDED"),
    (RequestError, 500, "INTERNAL"),
    (ForwardpassError, 400, "FAILED_PRECONDITION"),
)
"""The one place where an error becomes a status of HTTP or gRPC; the last line is for models that cannot be loaded."""

_encode = msgspec.json.Encoder().encode


def json_response(document: object, *, status: int = 200) -> Response:
    """Answer with a document."""
    return Response(status=status, body=_encode(document))


def message_response(status: int, sentence: str) -> Response:
    """Answer with an error that has no class of its own."""
    return json_response({"error": sentence}, status=status)


def error_response(error: ForwardpassError) -> Response:
    """Answer with an error, its slug and its facts, and with when to come back where that helps."""
    status = next(status for kind, status, _ in STATUSES if isinstance(error, kind))
    headers: tuple[tuple[str, str], ...] = ()
    if isinstance(error, Overloaded | RateLimited):
        headers = (("retry-after", str(max(1, math.ceil(error.retry_after_s)))),)
    elif isinstance(error, NotReady | OutOfMemory):
        headers = (("retry-after", "1"),)
    elif isinstance(error, Unauthorized):
        headers = (("www-authenticate", "Bearer"),)
    return Response(status=status, body=_encode(error_document(error)), headers=headers)


def error_document(error: ForwardpassError) -> dict[str, object]:
    """Return what the body of an error says."""
    return {"error": str(error), "slug": error.slug, "facts": vars(error)}


def grpc_code(error: ForwardpassError) -> str:
    """Return the name of the gRPC status code of an error."""
    return next(code for kind, _, code in STATUSES if isinstance(error, kind))


def not_allowed(methods: tuple[bytes, ...]) -> Response:
    """Answer a method that the route does not take."""
    allowed = ", ".join("GET, HEAD" if method == b"GET" else method.decode() for method in methods)
    return Response(status=405, body=_encode({"error": f"This route takes {allowed}."}), headers=(("allow", allowed),))
