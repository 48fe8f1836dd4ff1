"""What an operator can set."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ServeSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """How a bundle is served. What is None is decided from the bundle's profile.

    The limits are for strangers: a client that sends slowly, much or for ever costs a bounded amount.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    variant: str | None = None
    num_threads: int | None = None
    max_batch_rows: int | None = None
    max_queue_rows: int = 1024
    timeout_s: float = 30.0
    """Deadline of a request that names none."""
    grace_s: float = 30.0
    """For answering what is open after a signal to stop."""
    hang_s: float = 60.0
    """A batch that runs longer than this, and twenty times longer than predicted, has hung: its worker is replaced."""
    max_body_bytes: int = 64 * 2**20
    max_header_bytes: int = 16 * 2**10
    max_connections: int = 1024
    header_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    keep_alive_s: float = 75.0
