"""The golden check: does a variant answer here as it did when it was built?

The same INT8 file gives other answers on a processor whose 8-bit multiplications saturate, and a new runtime version
can change any kernel. Re-running a few recorded calls takes milliseconds and finds both before a user does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from forwardpass.bundle import GoldenCall
from forwardpass.core.protocols import Runtime
from forwardpass.core.tensors import Array
from forwardpass.errors import GoldenMismatch
from forwardpass.runtimes.processors import find_processor

__all__ = ["GoldenCheck", "check_golden", "relative_error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenCheck:
    """How far the worst output of a variant is from its golden answer (relative error), and how far it may be."""

    variant: str
    difference: float
    tolerance: float


def check_golden(runtime: Runtime, calls: Sequence[GoldenCall], *, variant: str, tolerance: float) -> GoldenCheck:
    """Run the golden inputs, compare every output, and return how far the worst one is off.

    Raises:
        GoldenMismatch: an output is further off than `tolerance`, a relative error.
    """
    worst = 0.0
    for call in calls:
        answers = runtime.run(call.inputs)
        for name, golden in call.outputs.items():
            difference = relative_error(answers[name], golden)
            if not difference <= tolerance:
                raise GoldenMismatch(
                    variant=variant,
                    output=name,
                    difference=difference,
                    tolerance=tolerance,
                    machine=f"{find_processor()}, {runtime.name} {runtime.version}",
                )
            worst = max(worst, difference)
    return GoldenCheck(variant=variant, difference=worst, tolerance=tolerance)


def relative_error(answer: Array, reference: Array) -> float:
    """Return the norm of the difference over the norm of the reference; infinity where the shapes or NaNs differ.

    Strings that are not all equal differ by 1.

    >>> relative_error(np.array([1.0, 2.0, np.inf]), np.array([1.0, 2.0, np.inf]))
    0.0
    """
    if answer.shape != reference.shape:
        return float("inf")
    if "O" in (answer.dtype.kind, reference.dtype.kind):
        return 0.0 if np.array_equal(answer, reference) else 1.0
    ours, theirs = answer.astype(np.float64), reference.astype(np.float64)
    if not np.array_equal(np.isfinite(ours), np.isfinite(theirs)):
        return float("inf")
    finite = np.isfinite(theirs)
    if not np.array_equal(ours[~finite], theirs[~finite], equal_nan=True):
        return float("inf")
    difference = float(np.linalg.norm(ours[finite] - theirs[finite]))
    return difference / max(float(np.linalg.norm(theirs[finite])), 1e-12) if difference else 0.0
