"""The client that blocks."""

# Made by scripts/make_blocking_client.py from asynchronous.py, apart from the docstring of the class.

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from numpy.typing import ArrayLike

from forwardpass.client import operations
from forwardpass.client.calling import Call, Pause, converse, make_peer, make_tls, translated
from forwardpass.client.documents import ModelMetadata, ModelState, ModelStatistics, ServerMetadata
from forwardpass.client.operations import Operation
from forwardpass.client.sockets import SocketPool
from forwardpass.core.tensors import Array
from forwardpass.errors import NotFound

__all__ = ["Client"]

T = TypeVar("T")


class Client:
    """Asks a server of the Open Inference Protocol v2; threads may share it.

    >>> from forwardpass import Client
    >>> client = Client("http://localhost:8000")
    >>> client
    Client('http://localhost:8000')
    >>> client.close()

    `timeout_s` is the deadline of calls that set none of their own, and the server is told. Without one a call may take
    60 seconds, and the server goes by its own. What it refuses for now (429 and 503 with Retry-After) is tried again
    up to `max_retries` times within the deadline.
    `binary` says whether tensors go as bytes; None asks the server once. Proxies are not used.

    Every method raises the errors of `forwardpass.errors`: those that the server raised, and `ServerUnreachable`,
    `DeadlineExceeded` and `InvalidAnswer`.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout_s: float | None = None,
        max_retries: int = 3,
        max_connections: int = 64,
        binary: bool | None = None,
        verify: bool = True,
        ca: Path | str | None = None,
        certificate: Path | str | None = None,
        private_key: Path | str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._peer = make_peer(
            url,
            key=key,
            timeout_s=timeout_s,
            max_retries=max_retries,
            max_connections=max_connections,
            headers=headers,
            tls=make_tls(verify=verify, ca=ca, certificate=certificate, private_key=private_key),
        )
        self._pool = SocketPool(self._peer)
        self._is_binary = binary

    def __repr__(self) -> str:
        return f"Client('{self._peer.address.url}')"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def infer(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike],
        *,
        version: str | int | None = None,
        outputs: Sequence[str] | None = None,
        timeout_s: float | None = None,
        priority: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Array]:
        """Run a model on tensors and return its outputs, or those named.

        dtypes are taken as they are: a model of float32 needs float32. Text and bytes are BYTES, which come back as
        arrays of bytes objects. `priority` 1 is the most urgent.

        Raises:
            TensorMismatch: a tensor does not fit the model.
            Overloaded: the server refused it; `retry_after_s` says when to come back.
            DeadlineExceeded: there was no answer within `timeout_s`.
        """
        begun_s = time.monotonic()
        operation = operations.infer(
            model,
            inputs,
            version=version,
            outputs=outputs,
            timeout_s=self._peer.told_s(timeout_s),
            priority=priority,
            is_binary=self._is_binary if self._is_binary is not None else self._ask_whether_binary(timeout_s),
        )
        return self._run(operation, timeout_s=timeout_s, headers=headers, begun_s=begun_s)

    def predict(
        self, model: str, /, *, version: str | int | None = None, timeout_s: float | None = None, **fields: object
    ) -> dict[str, Any]:
        """Ask a model in the fields of its processor, or in `inputs` of nested lists if it has none.

        Only forwardpass serves this route.
        """
        return self._run(operations.predict(model, fields, version=version), timeout_s=timeout_s)

    def metadata(self) -> ServerMetadata:
        """Return the name, version and extensions of the server."""
        return self._run(operations.describe_server())

    def model_metadata(self, model: str, *, version: str | int | None = None) -> ModelMetadata:
        """Return the inputs and outputs of a model."""
        return self._run(operations.describe_model(model, version))

    def is_ready(self, model: str | None = None, *, version: str | int | None = None) -> bool:
        """Tell whether the server, or a model, answers."""
        return self._run(operations.is_ready(model, version))

    def models(self) -> tuple[ModelState, ...]:
        """List the models, those that are not loaded included; a server without a repository tells names only."""
        listed = self._run(operations.list_models())
        return listed if listed is not None else self._run(operations.list_names())

    def load(self, model: str) -> None:
        """Load a model of the server's repository, or its changes."""
        self._run(operations.change_model(model, "load"))

    def unload(self, model: str) -> None:
        """Take a model out of service."""
        self._run(operations.change_model(model, "unload"))

    def statistics(self, model: str | None = None, *, version: str | int | None = None) -> tuple[ModelStatistics, ...]:
        """Return what every version of every model, or of one, has done."""
        return self._run(operations.statistics(model, version))

    def _ask_whether_binary(self, timeout_s: float | None) -> bool:
        try:
            described = self._run(operations.describe_server(), timeout_s=timeout_s)
        except NotFound:  # a server of a few routes
            self._is_binary = False
        else:
            self._is_binary = operations.BINARY_EXTENSION in described.extensions
        return self._is_binary

    def _run(
        self,
        operation: Operation[T],
        *,
        timeout_s: float | None = None,
        headers: Mapping[str, str] | None = None,
        begun_s: float | None = None,
    ) -> T:
        call = converse(self._peer, operation, timeout_s=timeout_s, headers=headers, begun_s=begun_s)
        with translated(self._peer, timeout_s):
            return self._drive(call)

    def _drive(self, call: Call[T]) -> T:
        try:
            step = next(call)
            while True:
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    step = call.send(None)
                else:
                    step = call.send(self._pool.exchange(step))
        except StopIteration as done:
            result: T = done.value
            return result
