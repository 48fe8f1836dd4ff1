"""Settings that every runtime understands."""

from __future__ import annotations

import os
from dataclasses import dataclass

__all__ = ["RuntimeOptions", "num_available_cores"]


def num_available_cores() -> int:
    """Return how many cores this process may use, which in a container can be fewer than the machine has."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeOptions:
    """How a variant is run.

    `packs_weights` lets a runtime lay out the weights for its kernels while it loads; without it a start is shorter,
    calls are longer and, with ONNX Runtime, the last bits of an answer depend on the size of the batch: it is there to
    be measured, not to be served with.
    """

    num_threads: int = 1
    packs_weights: bool = True
