"""What the layers ask of the outside world: to run a variant, to speak a person's language, to tell how far it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol, runtime_checkable

from forwardpass.core.tensors import Array, Signature, Tensors, TensorSpec

__all__ = [
    "Decoder",
    "DescribesTensors",
    "Encoder",
    "Processor",
    "Progress",
    "Runtime",
    "ShowsExample",
    "StreamingDecoder",
    "TakesFiles",
]


class Runtime(Protocol):
    """A loaded variant. Safe to call from one thread at a time."""

    @property
    def name(self) -> str:
        """The library that runs it, for example `onnxruntime`."""

    @property
    def version(self) -> str:
        """The version of that library."""

    @property
    def signature(self) -> Signature:
        """Inputs and outputs as the file declares them."""

    def run(self, tensors: Tensors) -> dict[str, Array]:
        """Run one call; `tensors` were validated against the signature."""


@runtime_checkable
class Encoder(Protocol):
    """Turns a person's input into tensors."""

    def encode(self, request: Mapping[str, object]) -> dict[str, Array]:
        """Turn the fields of one request into input tensors.

        Raises:
            MalformedRequest: a field is missing, unknown or of the wrong type.
        """


class Decoder(Protocol):
    """Turns the model's outputs into words."""

    def decode(self, outputs: Tensors) -> Mapping[str, object]:
        """Turn the outputs of one request into fields that JSON can carry."""


class Processor(Encoder, Decoder, Protocol):
    """Turns a person's input into tensors and the model's outputs back; one without `encode` does the latter alone.

    It is a class of an installed package, registered under the entry point group `forwardpass.processors`, and is
    constructed with the folder of its files inside the bundle.
    """


@runtime_checkable
class TakesFiles(Protocol):
    """A processor some of whose fields are files: `encode` gets an `Upload` for each, or a list of them."""

    @property
    def file_fields(self) -> Mapping[str, tuple[str, ...]]:
        """The media types that each such field takes, for example `{"image": ("image/png", "image/jpeg")}`."""


@runtime_checkable
class ShowsExample(Protocol):
    """A processor that shows what it takes, so that a person can try it on the server's page without knowing it."""

    @property
    def example(self) -> Mapping[str, object] | None:
        """The fields of a request that is answered, such as `{"text": "the cat sleeps"}`; None to show nothing."""


@runtime_checkable
class DescribesTensors(Protocol):
    """A processor that says beforehand what it makes and reads, so that a model that does not fit is told at load."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...] | None:
        """The tensors that `encode` makes, if there is one; an axis that counts what a request holds has a name."""

    @property
    def output(self) -> str | None:
        """The output that `decode` needs, if it needs one of a certain name."""


@runtime_checkable
class StreamingDecoder(Decoder, Protocol):
    """A processor that can answer piece by piece, to those who ask for that."""

    def stream(self, outputs: Tensors) -> Iterator[Mapping[str, object]]:
        """Turn the outputs of one request into objects that are sent one after the other.

        It is advanced only as fast as the client reads. When the client leaves, it is closed as any generator is.
        """


class Progress(Protocol):
    """Hears how far a long piece of work is."""

    def __call__(self, text: str, *, done: float) -> None:
        """Take note that the work is at `text`, with the share `done` (0 to 1) behind it."""
