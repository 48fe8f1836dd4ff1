"""Asks servers of the Open Inference Protocol v2, ours and others, from Python: blocking or with asyncio.

Errors are those of `forwardpass.errors`, the same that the server raised. Nothing here needs more than numpy, msgspec
and httptools. Names are loaded when they are used: a blocking client does not pay for asyncio.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forwardpass.client.asynchronous import AsyncClient
    from forwardpass.client.blocking import Client
    from forwardpass.client.documents import (
        ModelMetadata,
        ModelState,
        ModelStatistics,
        ServerMetadata,
        TensorMetadata,
    )

_HOMES = {
    "AsyncClient": "asynchronous",
    "Client": "blocking",
    "ModelMetadata": "documents",
    "ModelState": "documents",
    "ModelStatistics": "documents",
    "ServerMetadata": "documents",
    "TensorMetadata": "documents",
}

__all__ = [
    "AsyncClient",
    "Client",
    "ModelMetadata",
    "ModelState",
    "ModelStatistics",
    "ServerMetadata",
    "TensorMetadata",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'forwardpass.client' has no attribute '{name}'")
    return getattr(import_module(f"forwardpass.client.{_HOMES[name]}"), name)
