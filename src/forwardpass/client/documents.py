"""What a server says of itself and of its models."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["ModelMetadata", "ModelState", "ModelStatistics", "ServerMetadata", "TensorMetadata"]


class ServerMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """The server's name, version and what it can do beyond the protocol."""

    name: str
    version: str = ""
    extensions: tuple[str, ...] = ()


class TensorMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """An input or output; -1 in the shape is a dynamic axis."""

    name: str
    datatype: str
    shape: tuple[int, ...] = ()


class ModelMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """A model's versions, inputs and outputs."""

    name: str
    platform: str = ""
    versions: tuple[str, ...] = ()
    inputs: tuple[TensorMetadata, ...] = ()
    outputs: tuple[TensorMetadata, ...] = ()


class ModelState(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the index: `READY`, `LOADING`, `UNAVAILABLE` and so on, with the reason."""

    name: str
    version: str = ""
    state: str = ""
    reason: str = ""


class ModelStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What one version has done.

    `inference_count` counts rows, `execution_count` batches. `inference_stats` holds a count and nanoseconds for
    each of `success`, `fail`, `queue`, `compute_infer` and so on.
    """

    name: str
    version: str = ""
    inference_count: int = 0
    execution_count: int = 0
    last_inference: int = 0
    inference_stats: dict[str, dict[str, int]] = {}
    batch_stats: tuple[dict[str, Any], ...] = ()


class Index(msgspec.Struct, frozen=True):
    """`GET /v2/models` of servers without a repository."""

    models: tuple[str, ...] = ()


class Statistics(msgspec.Struct, frozen=True):
    """`GET /v2/models/stats`."""

    model_stats: tuple[ModelStatistics, ...] = ()
