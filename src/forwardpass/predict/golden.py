"""The golden check: does a variant answer here as it did when it was built?

The same INT8 file gives other answers on a processor whose 8-bit multiplications saturate, and a new runtime version
can change any kernel. Re-running a few recorded calls takes milliseconds and finds both before a user does.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence

import numpy as np

from forwardpass.bundle import GoldenCall
from forwardpass.core.protocols import Runtime
from forwardpass.core.tensors import Array
from forwardpass.errors import GoldenMismatch

__all__ = ["check_golden", "relative_error"]


def check_golden(runtime: Runtime, calls: Sequence[GoldenCall], *, variant: str, tolerance: float) -> None:
    """Run the golden inputs and compare every output.

    Raises:
        GoldenMismatch: an output is further off than `tolerance`, a relative error.
    """
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
                    machine=f"{platform.machine()}, {runtime.name} {runtime.version}",
                )


def relative_error(answer: Array, reference: Array) -> float:
    """Return the norm of the difference over the norm of the reference; infinity where the shapes or NaNs differ.

    >>> relative_error(np.array([1.0, 2.0]), np.array([1.0, 2.0]))
    0.0
    """
    if answer.shape != reference.shape:
        return float("inf")
    ours, theirs = answer.astype(np.float64), reference.astype(np.float64)
    if not np.array_equal(np.isfinite(ours), np.isfinite(theirs)):
        return float("inf")
    finite = np.isfinite(theirs)
    if not np.array_equal(ours[~finite], theirs[~finite], equal_nan=True):
        return float("inf")
    difference = float(np.linalg.norm((ours - theirs)[finite]))
    return difference / max(float(np.linalg.norm(theirs[finite])), 1e-12) if difference else 0.0
