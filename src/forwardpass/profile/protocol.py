"""What the measuring process and its children say to each other: one JSON document a line."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from forwardpass.core.operators import OperatorBreakdown
from forwardpass.core.variants import Format
from forwardpass.profile.audits import AnswerDigest, InvarianceAudit

__all__ = [
    "Answer",
    "Audit",
    "Audited",
    "Command",
    "Digest",
    "Digested",
    "Failed",
    "Open",
    "Opened",
    "Round",
    "Rounds",
    "Trace",
    "Traced",
]


class Open(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="open"):
    """Load a variant and run the first of its calls."""

    format: Format
    location: str
    weights: str
    num_threads: int
    calls: dict[int, str]
    """The path of an `.npz` for each batch size, its arrays named `<call>:<tensor>`, the smallest call first."""
    first_call: int
    """Which call of the smallest batch size is run first."""
    packs_weights: bool = True


class Round(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="round"):
    """Run `num_calls` calls of a batch size, spread over their sizes, `num_passes` times."""

    batch_size: int
    num_calls: int
    num_passes: int


class Audit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="audit"):
    """Compare rows alone with the same rows in batches, for `budget_s`."""

    budget_s: float


class Digest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="digest"):
    """Hash the answers to the audit's rows in batches of these sizes, to compare them with another process."""

    batch_sizes: list[int]


class Trace(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="trace"):
    """Say where the time of calls of a batch size goes, in a session of its own that runs for `budget_s`."""

    batch_size: int
    budget_s: float


Command: TypeAlias = Open | Round | Audit | Digest | Trace


class Opened(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="opened"):
    """The variant is loaded and has answered once."""

    runtime: str
    runtime_version: str
    is_batchable: bool
    import_s: float
    load_s: float
    first_run_s: float
    rss_before_load_bytes: int
    peak_rss_bytes: int


class Rounds(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="rounds"):
    """Wall time and CPU time of every call of a round, in order, and the resident memory after it."""

    wall_s: list[float]
    cpu_s: list[float]
    rss_bytes: int


class Audited(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="audited"):
    """What the audit found."""

    audit: InvarianceAudit


class Digested(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="digested"):
    """The hashes of the answers."""

    digests: list[AnswerDigest]


class Traced(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="traced"):
    """Where the time goes; None where the runtime does not say."""

    operators: OperatorBreakdown | None


class Failed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="failed"):
    """The command raised: an error of our tree by its slug and facts, or any other one by its text alone."""

    reason: str
    slug: str = ""
    facts: dict[str, str | int | float | list[str] | None] = {}


Answer: TypeAlias = Opened | Rounds | Audited | Digested | Traced | Failed
