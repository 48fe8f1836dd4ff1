"""Samples for a converter in another process: one call a row, in one archive."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from forwardpass.core.samples import Samples
from forwardpass.core.tensors import Array
from forwardpass.errors import InvalidSamples

__all__ = ["write_calibration"]

MAX_CALLS = 200


def write_calibration(path: Path, samples: Samples | None, *, name: str) -> None:
    """Write up to 200 rows of the samples, arrays named `<call>:<input>`.

    Raises:
        InvalidSamples: there are none.
    """
    if samples is None:
        hint = "Give some with --data samples.npz, or choose --precision int8-dynamic."
        raise InvalidSamples(origin=name, reason="static INT8 is calibrated with samples", hint=hint)
    calls = {
        f"{number}:{tensor}": array
        for number, call in zip(range(MAX_CALLS), _rows(samples), strict=False)
        for tensor, array in call.items()
    }
    np.savez(path, allow_pickle=False, **calls)


def _rows(samples: Samples) -> Iterator[dict[str, Array]]:
    """Yield the samples one by one, the groups in turns."""
    for row in range(max(len(group) for group in samples.groups)):
        for group in samples.groups:
            if row < len(group):
                yield {tensor: array[row : row + 1] for tensor, array in group.inputs.items()}
