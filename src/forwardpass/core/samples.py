"""Representative inputs, with labels if there are any, in three splits that never overlap."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from forwardpass.core.strings import array_bytes
from forwardpass.core.tensors import Array, Signature, TensorSpec
from forwardpass.errors import InvalidSamples

__all__ = ["SampleGroup", "SampleSplits", "Samples", "fingerprint_samples", "signature_of_samples", "split_samples"]

SPLIT_SHARES = (0.2, 0.3, 0.5)
"""Calibration, validation, test: the test split is the largest, since it alone decides how sure the report can be."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampleGroup:
    """Samples of one shape: every input has the samples along its first axis; `labels` has shape `[n, ...]`."""

    inputs: dict[str, Array]
    labels: Array | None = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def take(self, rows: Array | slice) -> SampleGroup:
        """Return the samples at `rows`."""
        labels = None if self.labels is None else self.labels[rows]
        return SampleGroup(inputs={name: array[rows] for name, array in self.inputs.items()}, labels=labels)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Samples:
    """Samples of one split, grouped by shape; sentences of different lengths, for example, are in several groups."""

    groups: tuple[SampleGroup, ...]

    def __len__(self) -> int:
        return sum(map(len, self.groups))

    @property
    def has_labels(self) -> bool:
        """Whether every sample has a label."""
        return all(group.labels is not None for group in self.groups)

    def batches(self, max_rows: int) -> Iterator[SampleGroup]:
        """Yield the samples in order, at most `max_rows` of one shape at a time."""
        for group in self.groups:
            for start in range(0, len(group), max_rows):
                yield group.take(slice(start, start + max_rows))

    def head(self, num_samples: int) -> Samples:
        """Return up to `num_samples` samples, taken in turn from each group so that every shape is represented."""
        counts = _round_robin([len(group) for group in self.groups], num_samples)
        pairs = zip(self.groups, counts, strict=True)
        return Samples(groups=tuple(group.take(slice(0, count)) for group, count in pairs if count))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampleSplits:
    """The search sees `calibration` and `validation`; reports quote `test`."""

    calibration: Samples
    validation: Samples
    test: Samples

    def check_disjoint(self, *, origin: str) -> None:
        """Raise `InvalidSamples` if a sample is in two splits."""
        named = (("calibration", self.calibration), ("validation", self.validation), ("test", self.test))
        seen: dict[bytes, str] = {}
        for name, samples in named:
            digests = {digest for group in samples.groups for digest in _digests(group)}
            for digest in digests:
                other = seen.setdefault(digest, name)
                if other != name:
                    raise InvalidSamples(
                        origin=origin,
                        reason=f"the splits {other} and {name} share at least one sample",
                        hint="Remove it from one of them, or give one file and let forwardpass split it.",
                    )


def signature_of_samples(samples: Samples) -> Signature:
    """Return inputs that these samples fit: of their names and dtypes, every axis of any size; and no outputs."""
    inputs = samples.groups[0].inputs
    return Signature(
        inputs=tuple(
            TensorSpec(name=name, dtype=array.dtype.name, shape=tuple(f"{name}_{axis}" for axis in range(array.ndim)))
            for name, array in inputs.items()
        ),
        outputs=(),
    )


def split_samples(samples: Samples, *, origin: str) -> SampleSplits:
    """Split by content: equal samples always land in the same split, whatever their order.

    Raises:
        InvalidSamples: fewer than ten distinct samples.
    """
    digests = [_digests(group) for group in samples.groups]
    distinct = sorted({digest for group in digests for digest in group})
    if len(distinct) < 10:
        raise InvalidSamples(
            origin=origin,
            reason=f"{len(distinct)} distinct {'sample' if len(distinct) == 1 else 'samples'} cannot be split into "
            "calibration, validation and test",
            hint="Give at least ten, or better a few hundred.",
        )
    edges = [round(len(distinct) * share) for share in np.cumsum(SPLIT_SHARES)]
    rank = {digest: position for position, digest in enumerate(distinct)}
    parts: list[Samples] = []
    for low, high in zip((0, *edges[:-1]), edges, strict=True):
        masks = [np.array([low <= rank[digest] < high for digest in group]) for group in digests]
        pairs = zip(samples.groups, masks, strict=True)
        parts.append(Samples(groups=tuple(group.take(mask) for group, mask in pairs if mask.any())))
    calibration, validation, test = parts
    return SampleSplits(calibration=calibration, validation=validation, test=test)


def _digests(group: SampleGroup) -> list[bytes]:
    """Return a hash of the inputs of each sample."""
    digests = []
    for row in range(len(group)):
        digest = hashlib.blake2b(digest_size=16)
        for name in sorted(group.inputs):
            rows = group.inputs[name]
            array = rows[row : row + 1].reshape(rows.shape[1:])  # a string alone would be no array
            digest.update(f"{name} {array.dtype} {array.shape} ".encode())
            digest.update(array_bytes(array))
        digests.append(digest.digest())
    return digests


def _round_robin(sizes: list[int], total: int) -> list[int]:
    """Share `total` among groups as evenly as their sizes allow.

    >>> _round_robin([5, 1, 3], 6)
    [3, 1, 2]
    """
    counts = [0] * len(sizes)
    remaining = min(total, sum(sizes))
    while remaining:
        for index, size in enumerate(sizes):
            if counts[index] < size and remaining:
                counts[index] += 1
                remaining -= 1
    return counts


def fingerprint_samples(samples: Samples) -> str:
    """Return a hash of all inputs and labels, in order."""
    total = hashlib.sha256()
    for group in samples.groups:
        for digest in _digests(group):
            total.update(digest)
        if group.labels is not None:
            total.update(array_bytes(group.labels))
    return total.hexdigest()
