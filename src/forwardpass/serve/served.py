"""What the routes need of whatever is served under a name: a model with its versions, or a pipeline of models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from forwardpass.core.protocols import Decoder, Encoder
from forwardpass.core.tensors import Array, Signature
from forwardpass.errors import RequestError
from forwardpass.serve.metrics import ModelMetrics
from forwardpass.serve.oip import ResponseWriter
from forwardpass.serve.request import Answer
from forwardpass.serve.tracing import Trace

__all__ = ["Described", "Served", "ServedVersion"]


class Described(Protocol):
    """What can be said of one version."""

    @property
    def model(self) -> str:
        """The name that it is served under."""

    @property
    def number(self) -> str:
        """Its version."""

    @property
    def signature(self) -> Signature:
        """Inputs and outputs."""

    @property
    def encoder(self) -> Encoder | None:
        """What makes tensors of a person's input."""

    @property
    def decoder(self) -> Decoder | None:
        """What puts outputs into words."""

    @property
    def metrics(self) -> ModelMetrics:
        """What was counted."""

    @property
    def is_ready(self) -> bool:
        """Whether it answers."""

    @property
    def timeout_s(self) -> float:
        """Within how many seconds an answer is of use to those who do not say."""

    def describe(self) -> str:
        """Return how it is served, in a few words."""


class ServedVersion(Described, Protocol):
    """One version in the hands of a request."""

    @property
    def writer(self) -> ResponseWriter:
        """Encodes its outputs."""

    def hold(self) -> None:
        """Announce a request that will be submitted, so that it is not stopped before."""

    def release(self) -> None:
        """Take the announcement back, after submitting or without it."""

    def submit(
        self,
        tensors: dict[str, Array],
        num_rows: int,
        answer: Answer,
        *,
        timeout_s: float | None = None,
        priority: int = ...,
    ) -> Callable[[], None]:
        """Queue a request; the returned function gives it up.

        Raises:
            RequestError: it is refused.
        """

    def failed(self, error: RequestError) -> None:
        """Count a request that did not come as far as the queue."""


class Served(Protocol):
    """A name that answers."""

    @property
    def name(self) -> str:
        """What clients call it."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every number and label that a version answers to."""

    @property
    def versions(self) -> Mapping[str, Described]:
        """Every version by its number."""

    @property
    def default(self) -> Described:
        """The version that is described to those who name none."""

    @property
    def is_ready(self) -> bool:
        """Whether every version answers."""

    def version(self, name: str | None) -> ServedVersion:
        """Return the version of a number or label, or one for a request that names none.

        Raises:
            NotFound: there is no such version.
            NotReady: it cannot take a request now.
        """

    def described(self, name: str | None) -> Described:
        """Return a version to describe it; without a name, the default one.

        Raises:
            NotFound: there is no such version.
        """

    def submit(
        self,
        version: ServedVersion,
        tensors: dict[str, Array],
        num_rows: int,
        answer: Answer,
        *,
        timeout_s: float | None = None,
        priority: int = ...,
        trace: Trace | None = None,
    ) -> Callable[[], None]:
        """Queue a request for a version that was returned before, and whatever belongs to it.

        Raises:
            RequestError: it is refused.
        """
