"""The client for asyncio."""

from __future__ import annotations

import asyncio
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
from forwardpass.client.streams import StreamPool
from forwardpass.core.tensors import Array
from forwardpass.errors import NotFound

__all__ = ["AsyncClient"]

T = TypeVar("T")


class AsyncClient:
    """The same as `Client` for asyncio; every method is awaited, and any number of tasks may share it.

    Up to `max_connections` requests are open at once; further ones wait for their turn within their deadline. It
    belongs to one event loop. Input arrays must not change while a call is awaited.
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
        self._pool = StreamPool(self._peer)
        self._is_binary = binary

    def __repr__(self) -> str:
        return f"AsyncClient('{self._peer.address.url}')"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.close()

    async def infer(
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
            is_binary=self._is_binary if self._is_binary is not None else await self._ask_whether_binary(timeout_s),
        )
        return await self._run(operation, timeout_s=timeout_s, headers=headers, begun_s=begun_s)

    async def predict(
        self, model: str, /, *, version: str | int | None = None, timeout_s: float | None = None, **fields: object
    ) -> dict[str, Any]:
        """Ask a model in the fields of its processor, or in `inputs` of nested lists if it has none.

        Only forwardpass serves this route.
        """
        return await self._run(operations.predict(model, fields, version=version), timeout_s=timeout_s)

    async def metadata(self) -> ServerMetadata:
        """Return the name, version and extensions of the server."""
        return await self._run(operations.describe_server())

    async def model_metadata(self, model: str, *, version: str | int | None = None) -> ModelMetadata:
        """Return the inputs and outputs of a model."""
        return await self._run(operations.describe_model(model, version))

    async def is_ready(self, model: str | None = None, *, version: str | int | None = None) -> bool:
        """Tell whether the server, or a model, answers."""
        return await self._run(operations.is_ready(model, version))

    async def models(self) -> tuple[ModelState, ...]:
        """List the models, those that are not loaded included; a server without a repository tells names only."""
        listed = await self._run(operations.list_models())
        return listed if listed is not None else await self._run(operations.list_names())

    async def load(self, model: str) -> None:
        """Load a model of the server's repository, or its changes."""
        await self._run(operations.change_model(model, "load"))

    async def unload(self, model: str) -> None:
        """Take a model out of service."""
        await self._run(operations.change_model(model, "unload"))

    async def statistics(
        self, model: str | None = None, *, version: str | int | None = None
    ) -> tuple[ModelStatistics, ...]:
        """Return what every version of every model, or of one, has done."""
        return await self._run(operations.statistics(model, version))

    async def _ask_whether_binary(self, timeout_s: float | None) -> bool:
        try:
            described = await self._run(operations.describe_server(), timeout_s=timeout_s)
        except NotFound:  # a server of a few routes
            self._is_binary = False
        else:
            self._is_binary = operations.BINARY_EXTENSION in described.extensions
        return self._is_binary

    async def _run(
        self,
        operation: Operation[T],
        *,
        timeout_s: float | None = None,
        headers: Mapping[str, str] | None = None,
        begun_s: float | None = None,
    ) -> T:
        call = converse(self._peer, operation, timeout_s=timeout_s, headers=headers, begun_s=begun_s)
        with translated(self._peer, timeout_s):
            return await self._drive(call)

    async def _drive(self, call: Call[T]) -> T:
        try:
            step = next(call)
            while True:
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                    step = call.send(None)
                else:
                    step = call.send(await self._pool.exchange(step))
        except StopIteration as done:
            result: T = done.value
            return result
