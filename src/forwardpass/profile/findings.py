"""What the comparisons of an audit add up to: which batch sizes agree, the worst difference, the verdict.

Knows no runtime and no clock: answers come in, a verdict comes out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from forwardpass.core.strings import array_bytes
from forwardpass.core.tensors import Array, Tensors
from forwardpass.core.variants import BatchInvariance
from forwardpass.profile.audits import MAX_DIFFERENCE
from forwardpass.profile.cases import Block, Case, Stage

__all__ = ["Difference", "Findings", "RowId", "compare", "typical_norms"]

MAX_KEPT_BYTES = 256 << 20
"""For answers that a later one at the same batch size is compared with. Beyond it they are compared with the row alone,
which can only make a verdict more careful."""
LIKE_ALONE = b""
LEAST_NORM = 1e-12
"""What `relative_error` divides by where the reference is zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowId:
    """A row under test."""

    pool: int
    row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How far an answer is from its reference: relative error, and whether it decides otherwise."""

    error: float
    is_flip: bool

    @property
    def is_rounding(self) -> bool:
        """Whether no user could notice."""
        return self.error <= MAX_DIFFERENCE and not self.is_flip


@dataclass(slots=True)
class _Size:
    """What was seen at one batch size."""

    marks: dict[RowId, bytes] = field(default_factory=dict)
    """The first answer of each row: `LIKE_ALONE`, or a hash of it."""
    is_consistent: bool = True
    max_error: float = 0.0
    is_finished: bool = False


class Findings:
    """Takes the answers of an audit, batch after batch."""

    def __init__(self, alone: Mapping[RowId, Tensors]) -> None:
        self._alone = alone
        self._alone_bytes = {row: _bytes_of(answer) for row, answer in alone.items()}
        self._sizes: dict[int, _Size] = {1: _Size(marks=dict.fromkeys(alone, LIKE_ALONE), is_finished=True)}
        self._typical_norms = typical_norms(alone.values())
        self._kept: dict[tuple[int, RowId], Tensors] = {}
        self._room_bytes = MAX_KEPT_BYTES
        self._is_bitwise = True
        self._is_mixing = False
        self._is_rounding = True
        self.max_difference = 0.0
        self.worst_case = ""
        self.num_comparisons = 0
        self.num_flips = 0

    def add(self, case: Case, answers: Tensors) -> None:
        """Compare every tested position of a batch with the same row alone, and with itself at the same size."""
        size = self._sizes.setdefault(case.batch_size, _Size())
        for position in case.tested:
            row = RowId(pool=case.pool, row=case.rows[position])
            answer = {name: answers[name][position : position + 1] for name in self._alone[row]}
            self._add_row(size, row, answer, case, position)

    def finish(self, block: Block) -> None:
        """Take note that all cases of a block have been added."""
        if block.stage is Stage.EVERY_SIZE:
            self._sizes.setdefault(block.batch_size, _Size()).is_finished = True

    @property
    def covered_batch_sizes(self) -> tuple[int, ...]:
        """The sizes at which every row under test was seen, in increasing order."""
        return tuple(sorted(size for size, seen in self._sizes.items() if seen.is_finished))

    @property
    def exact_batch_sizes(self) -> tuple[int, ...]:
        """The largest class of covered sizes that agree bitwise; of equally large ones that with the smallest member.

        A class has two members at least: a single size would mean to pad everything up to it. Its answers must be
        those of rows alone, too, up to rounding: sizes can agree on garbage.
        """
        classes: dict[tuple[bytes, ...], list[int]] = {}
        for batch_size in self.covered_batch_sizes:
            seen = self._sizes[batch_size]
            if seen.is_consistent and seen.max_error <= MAX_DIFFERENCE:
                classes.setdefault(tuple(seen.marks[row] for row in self._alone), []).append(batch_size)
        best = max(classes.values(), key=lambda sizes: (len(sizes), -sizes[0]), default=[])
        return tuple(best) if len(best) > 1 else ()

    @property
    def is_mixing(self) -> bool:
        """Whether neighbours or positions have moved an answer, at one batch size, by more than rounding."""
        return self._is_mixing

    @property
    def verdict(self) -> BatchInvariance:
        """What to make of it all."""
        if self._is_bitwise:
            return BatchInvariance.BITWISE
        if self._is_mixing:
            return BatchInvariance.INTERFERENCE
        if self.exact_batch_sizes:
            return BatchInvariance.FIXED_SHAPES
        return BatchInvariance.TOLERANCE if self._is_rounding else BatchInvariance.INTERFERENCE

    def _add_row(self, size: _Size, row: RowId, answer: Tensors, case: Case, position: int) -> None:
        self.num_comparisons += 1
        content = _bytes_of(answer)
        mark = LIKE_ALONE
        if content != self._alone_bytes[row]:
            mark = hashlib.sha256(content).digest()
            self._add_difference(size, row, answer, case.describe(position))
        first = size.marks.setdefault(row, mark)
        if first != mark:
            size.is_consistent = False
            reference = self._kept.get((case.batch_size, row), self._alone[row])
            self._is_mixing = self._is_mixing or not self._compare(answer, reference).is_rounding
        elif mark != LIKE_ALONE:
            self._keep(case.batch_size, row, answer, len(content))

    def _add_difference(self, size: _Size, row: RowId, answer: Tensors, where: str) -> None:
        self._is_bitwise = False
        found = self._compare(answer, self._alone[row])
        self.num_flips += found.is_flip
        self._is_rounding = self._is_rounding and found.is_rounding
        size.max_error = max(size.max_error, found.error)
        if found.error > self.max_difference or not self.worst_case:
            self.max_difference, self.worst_case = found.error, where

    def _compare(self, answer: Tensors, reference: Tensors) -> Difference:
        return compare(answer, reference, self._typical_norms)

    def _keep(self, batch_size: int, row: RowId, answer: Tensors, num_bytes: int) -> None:
        if (batch_size, row) not in self._kept and num_bytes <= self._room_bytes:
            self._room_bytes -= num_bytes
            self._kept[batch_size, row] = {name: array.copy() for name, array in answer.items()}


def typical_norms(answers: Iterable[Tensors]) -> dict[str, float]:
    """Return the median norm of every output over the answers to single rows."""
    norms: dict[str, list[float]] = {}
    for answer in answers:
        for name, array in answer.items():
            norms.setdefault(name, []).append(_norm(array))
    return {name: float(np.median(found)) for name, found in norms.items()}


def compare(answer: Tensors, reference: Tensors, typical: Mapping[str, float]) -> Difference:
    """Return the greatest difference over all outputs of one row.

    The error is relative to the norm of the reference, or to a typical norm of that output if that is greater: where a
    score is nearly zero because large numbers cancel, their rounding is not small beside it.
    """
    # Here and not above: forwardpass.predict is no part of what a cold start imports.
    from forwardpass.predict.golden import relative_error

    pairs = [
        (name, answer[name], array)
        for name, array in reference.items()
        if array_bytes(answer[name]) != array_bytes(array)
    ]
    return Difference(
        error=max(
            (relative_error(ours, theirs) * _shrink(theirs, typical[name]) for name, ours, theirs in pairs), default=0.0
        ),
        is_flip=any(_decides_otherwise(ours, theirs) for _, ours, theirs in pairs),
    )


def _shrink(reference: Array, typical_norm: float) -> float:
    """Return what turns an error relative to a reference into one relative to something greater."""
    norm = max(_norm(reference), LEAST_NORM)
    return norm / max(norm, typical_norm)


def _norm(array: Array) -> float:
    if array.dtype.kind == "O":
        return 1.0  # strings are equal or not, whatever their length
    finite = array[np.isfinite(array)].astype(np.float64)
    return float(np.linalg.norm(finite))


def _bytes_of(answer: Tensors) -> bytes:
    return b"".join(array_bytes(answer[name]) for name in sorted(answer))


def _decides_otherwise(answer: Array, reference: Array) -> bool:
    """Tell whether integers or shapes differ, or the greatest of a row of at least two scores is another one."""
    if answer.dtype.kind != "f" or answer.shape != reference.shape:
        return True
    is_scores = reference.ndim == 2 and reference.shape[1] > 1 and reference.size > 0
    return is_scores and bool(np.argmax(answer) != np.argmax(reference))
