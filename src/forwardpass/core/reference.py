"""Statistics of the data that a model was built with: what drift is later measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from forwardpass.core.tensors import Array

if TYPE_CHECKING:
    from forwardpass.core.samples import Samples

__all__ = ["TensorStatistics", "summarise_samples", "summarise_tensors"]

NUM_BINS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorStatistics:
    """Moments and a histogram of all values of one tensor over a split.

    `bin_edges` has one number more than `bin_counts`; the first and last bin are closed by the least and greatest
    value seen. Only such aggregates are kept, never a sample.
    """

    name: str
    num_values: int
    mean: float
    std: float
    min: float
    max: float
    bin_edges: tuple[float, ...]
    bin_counts: tuple[int, ...]


def summarise_samples(samples: Samples) -> tuple[TensorStatistics, ...]:
    """Summarise every input over all groups; strings have no such statistics and are left out."""
    names = [name for name, array in samples.groups[0].inputs.items() if array.dtype.kind != "O"]
    return tuple(summarise_tensors(name, [group.inputs[name] for group in samples.groups]) for name in names)


def summarise_tensors(name: str, arrays: list[Array]) -> TensorStatistics:
    """Summarise the values of `arrays`, whose shapes may differ."""
    values = np.concatenate([array.reshape(-1).astype(np.float64) for array in arrays])
    counts, edges = np.histogram(values, bins=NUM_BINS)
    return TensorStatistics(
        name=name,
        num_values=values.size,
        mean=float(values.mean()),
        std=float(values.std()),
        min=float(values.min()),
        max=float(values.max()),
        bin_edges=tuple(float(edge) for edge in edges),
        bin_counts=tuple(int(count) for count in counts),
    )
