"""What an operator can set."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from forwardpass.core.slo import Slo
from forwardpass.predict.exactness import SameAnswer

__all__ = ["Front", "LowLoadThreads", "ModelSettings", "SameAnswer", "ServeSettings"]


class Front(StrEnum):
    """What reads the requests."""

    AUTO = "auto"
    """Native code where it was built and the settings allow it, and Python for what is unusual."""
    PYTHON = "python"
    """Python alone."""


class LowLoadThreads(StrEnum):
    """How many threads a request gets that has several workers to itself."""

    AUTO = "auto"
    """Those of all cores, where the profile shows that they answer it clearly sooner than those of a worker."""
    OFF = "off"
    """Those of a worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """How one model is served. What is None is decided from the bundle and its profile."""

    variant: str | None = None
    num_threads: int | None = None
    num_workers: int | None = None
    low_load_threads: LowLoadThreads = LowLoadThreads.AUTO
    """Of a request that is alone; `num_threads`, where an operator sets it, holds for all."""
    max_batch_rows: int | None = None
    max_queue_rows: int = 1024
    slo: Slo | None = None
    """The latency target, where the bundle's own is to be overruled or it has none."""
    timeout_s: float | None = None
    """Deadline of a request that names none; without it the target's limit, and without a target 30 seconds."""
    same_answer: SameAnswer = SameAnswer.AFFORDABLE
    hang_s: float = 60.0
    """A batch that runs longer than this, or than twenty times what was predicted where that is longer, has hung: its
    worker is replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """How the server deals with its clients, and `model`, the settings of models that have none of their own.

    The limits are for strangers: a client that sends slowly, much or for ever costs a bounded amount.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = None
    """For gRPC; None for none."""
    model: ModelSettings = field(default_factory=ModelSettings)
    grace_s: float = 30.0
    """For answering what is open after a signal to stop."""
    keys: Path | None = None
    """File of API keys; without one everybody who reaches the server may use it."""
    certificate: Path | None = None
    """PEM file for TLS; `private_key` belongs to it, and with `client_ca` clients need a certificate, too."""
    private_key: Path | None = None
    client_ca: Path | None = None
    watch_s: float | None = None
    """How often to look for new versions of the models; None for never."""
    otlp: str | None = None
    """Address of a collector of traces (OTLP over HTTP); None for no traces."""
    trace_sample: float = 1.0
    """Share of the requests that are traced, of those that come without a trace of their own."""
    log_requests: bool = False
    """A line for every request: its route, status and time, nothing of its content."""
    front: Front = Front.AUTO
    max_body_bytes: int = 64 * 2**20
    max_header_bytes: int = 16 * 2**10
    max_connections: int = 1024
    header_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    keep_alive_s: float = 75.0
