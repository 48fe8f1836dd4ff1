"""Models that are not served, and requests that are not answered."""

from __future__ import annotations

from collections.abc import Sequence

from forwardpass.errors.base import ForwardpassError

__all__ = [
    "BodyTooLarge",
    "DeadlineExceeded",
    "Forbidden",
    "GoldenMismatch",
    "InputRejected",
    "InvalidAnswer",
    "MalformedRequest",
    "ModelNotServed",
    "NotAcceptable",
    "NotFound",
    "NotReady",
    "OutOfMemory",
    "Overloaded",
    "RateLimited",
    "RequestError",
    "RequestQuarantined",
    "ServerFailed",
    "ServerUnreachable",
    "TensorMismatch",
    "Unauthorized",
    "UnsupportedMediaType",
]


class GoldenMismatch(ForwardpassError):
    """A variant does not answer on this machine as it did when it was built."""

    slug = "golden-mismatch"

    def __init__(self, *, variant: str, output: str, difference: float, tolerance: float, machine: str) -> None:
        self.variant = variant
        self.output = output
        self.difference = difference
        self.tolerance = tolerance
        self.machine = machine
        super().__init__(
            f"The variant '{variant}' answers differently on this machine, {machine}: output '{output}' is off by "
            f"{difference:.3g} (tolerance {tolerance:.3g}, both relative) from the golden answer. Build the bundle on "
            "this kind of machine, or choose a float variant with --variant."
        )


class ModelNotServed(ForwardpassError):
    """The worker of a server could not load its model, or the model failed its golden check."""

    slug = "model-not-served"

    def __init__(self, *, model: str, reason: str) -> None:
        self.model = model
        self.reason = reason
        super().__init__(f"Cannot serve '{model}': {reason}")


class RequestError(ForwardpassError):
    """One request that cannot be answered."""

    slug = "request"


class MalformedRequest(RequestError, ValueError):
    """The body or a header does not follow the protocol."""

    slug = "malformed-request"

    def __init__(self, *, reason: str) -> None:
        self.reason = reason
        super().__init__(f"Malformed request: {reason}.")


class TensorMismatch(RequestError, ValueError):
    """A tensor does not fit the model's signature."""

    slug = "tensor-mismatch"

    def __init__(self, *, tensor: str, reason: str, expected: str) -> None:
        self.tensor = tensor
        self.reason = reason
        self.expected = expected
        super().__init__(f"Input '{tensor}' {reason}; expected {expected}.")


class InputRejected(RequestError, ValueError):
    """The model itself cannot run these values, for example a token id beyond its vocabulary."""

    slug = "input-rejected"

    def __init__(self, *, model: str, kind: str) -> None:
        self.model = model
        self.kind = kind
        super().__init__(
            f"The model '{model}' cannot run these values ({kind}). Shapes and dtypes fit; look for ids or indices "
            "beyond what the model knows."
        )


class OutOfMemory(RequestError, MemoryError):
    """The server has not enough memory to run this request, even by itself."""

    slug = "out-of-memory"

    def __init__(self, *, model: str) -> None:
        self.model = model
        super().__init__(
            f"The server has not enough memory to run the model '{model}' on this request. Send fewer rows at once, or "
            "try again later."
        )


class BodyTooLarge(RequestError, ValueError):
    """The request's body is over the limit."""

    slug = "body-too-large"

    def __init__(self, *, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        super().__init__(f"The request body is larger than the limit of {max_bytes} bytes.")


class UnsupportedMediaType(RequestError, ValueError):
    """The body, or a part of it, is of a kind that the model does not take."""

    slug = "unsupported-media-type"

    def __init__(self, *, media_type: str, expected: Sequence[str]) -> None:
        self.media_type = media_type
        self.expected = tuple(expected)
        super().__init__(f"The media type '{media_type}' is not taken here; expected {' or '.join(expected)}.")


class NotAcceptable(RequestError):
    """The client accepts only a form of answer that the model cannot give."""

    slug = "not-acceptable"

    def __init__(self, *, wanted: str, available: str) -> None:
        self.wanted = wanted
        self.available = available
        super().__init__(f"This model cannot answer with '{wanted}'; accept '{available}'.")


class NotFound(RequestError, LookupError):
    """The request names a model, version or path that is not served."""

    slug = "not-found"

    def __init__(self, *, what: str, available: Sequence[str] = ()) -> None:
        self.what = what
        self.available = tuple(available)
        hint = f" Available: {', '.join(available)}." if available else ""
        super().__init__(f"There is no {what} here.{hint}")


class Overloaded(RequestError):
    """Accepting the request would not leave it enough time; the client should try later."""

    slug = "overloaded"

    def __init__(self, *, retry_after_s: float, reason: str) -> None:
        self.retry_after_s = retry_after_s
        self.reason = reason
        super().__init__(f"The server is overloaded: {reason}. Try again in {retry_after_s:.3g} s.")

    @classmethod
    def queue_full(cls, *, retry_after_s: float, num_rows: int, max_rows: int) -> Overloaded:
        """Return the refusal of a request for which there is no room."""
        waiting = "1 row is" if num_rows == 1 else f"{num_rows} rows are"
        return cls(retry_after_s=retry_after_s, reason=f"{waiting} waiting, the limit is {max_rows}")

    @classmethod
    def too_late(cls, *, retry_after_s: float, needed_s: float) -> Overloaded:
        """Return the refusal of a request that could not be answered in time."""
        reason = f"an answer would take {needed_s:.3g} s, longer than the request's deadline allows"
        return cls(retry_after_s=retry_after_s, reason=reason)


class DeadlineExceeded(RequestError, TimeoutError):
    """The request could not be answered before its deadline."""

    slug = "deadline-exceeded"

    def __init__(self, *, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        super().__init__(f"The request could not be answered within its deadline of {deadline_s:.3g} s.")


class NotReady(RequestError):
    """The server is loading or stopping."""

    slug = "not-ready"

    def __init__(self, *, reason: str) -> None:
        self.reason = reason
        super().__init__(f"The server is not ready: {reason}.")


class RequestQuarantined(RequestError):
    """The request ended the worker process twice; the same tensors are not run again for a while."""

    slug = "request-quarantined"

    def __init__(self, *, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(
            f"This request has ended the model's worker process twice. It is not run again for {seconds:.0f} s."
        )


class Unauthorized(RequestError):
    """The request carries no API key, or one that is not valid."""

    slug = "unauthorized"

    def __init__(self, *, reason: str) -> None:
        self.reason = reason
        super().__init__(f"This needs a valid API key: {reason}. Send it as 'Authorization: Bearer KEY'.")


class Forbidden(RequestError):
    """The API key does not allow this."""

    slug = "forbidden"

    def __init__(self, *, reason: str) -> None:
        self.reason = reason
        super().__init__(f"This is not allowed: {reason}.")


class RateLimited(RequestError):
    """The API key has used up its requests for now."""

    slug = "rate-limited"

    def __init__(self, *, retry_after_s: float, requests_per_s: float) -> None:
        self.retry_after_s = retry_after_s
        self.requests_per_s = requests_per_s
        super().__init__(
            f"This API key may send {requests_per_s:g} requests per second. Try again in {retry_after_s:.3g} s."
        )


class ServerUnreachable(RequestError, ConnectionError):
    """There is no connection to the server, or it broke before the answer was there."""

    slug = "server-unreachable"

    def __init__(self, *, url: str, reason: str) -> None:
        self.url = url
        self.reason = reason
        super().__init__(f"Cannot reach the server at {url}: {reason}.")


class ServerFailed(RequestError):
    """The server answered with a status that has no class of its own, such as 500."""

    slug = "server-failed"

    def __init__(self, *, status: int, reason: str) -> None:
        self.status = status
        self.reason = reason
        super().__init__(f"The server answered with status {status}: {reason}.")


class InvalidAnswer(RequestError, ValueError):
    """What the server sent does not follow the protocol."""

    slug = "invalid-answer"

    def __init__(self, *, url: str, reason: str) -> None:
        self.url = url
        self.reason = reason
        super().__init__(f"The answer of {url} does not follow the Open Inference Protocol: {reason}.")
