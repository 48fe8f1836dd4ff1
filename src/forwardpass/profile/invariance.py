"""The audit of batch invariance: does a row's answer depend on the rows that share its batch?

A few rows are answered alone, then again in batches of other sizes, at other positions, beside ordinary and hostile
neighbours. Equal bytes everywhere are `bitwise`; a difference that no user could notice is `within-tolerance`;
anything more is `interference`, and such a variant must not be batched across requests. INT8 dynamic quantisation,
which shares one scale over the batch, is the common case.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice

import numpy as np

from forwardpass.core.protocols import Runtime
from forwardpass.core.tensors import Array, Tensors
from forwardpass.core.variants import BatchInvariance
from forwardpass.profile.pacing import pick_evenly

__all__ = ["MAX_DIFFERENCE", "InvarianceAudit", "audit_invariance"]

MAX_DIFFERENCE = 1e-4
"""Relative error (norm of the difference over norm of the answer) that still counts as rounding: a float32 model
that sums in another order stays two orders below it, dynamic quantisation is two orders above."""
OUTLIER_FACTOR = 20.0
BATCH_SIZES = (2, 8, 3, 17, 5, 4, 16)
"""Even and odd, and beyond the width of the vector kernels; the most telling first, since the budget may end early."""
MAX_TARGETS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class InvarianceAudit:
    """What was found, and how hard it was looked for.

    `max_difference` is the greatest relative error of an answer in a batch against the same row alone; `worst_case`
    says where it was, and is empty if there was none.
    """

    verdict: BatchInvariance
    max_difference: float
    worst_case: str
    num_comparisons: int
    answers_sha256: str
    """Over the answers of the rows alone: equal for two thread counts if the answers are."""
    exact_batch_sizes: tuple[int, ...] = ()
    """Sizes at which answers are bitwise equal to each other; only where the verdict is `FIXED_SHAPES`."""


class Neighbours(StrEnum):
    """What shares the batch with the row under test."""

    ORDINARY = "ordinary neighbours"
    OUTLIERS = "neighbours scaled by 20"
    ZEROS = "neighbours of zeros"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    batch_size: int
    position: int
    neighbours: Neighbours

    def __str__(self) -> str:
        return f"batch of {self.batch_size}, row {self.position + 1}, {self.neighbours}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Target:
    """A row with its answer alone, and the pool of rows that its neighbours come from."""

    pool: Tensors
    row: int
    alone: dict[str, Array]


@dataclass(slots=True)
class _Findings:
    """What has been seen so far."""

    is_bitwise: bool = True
    flipped: bool = False
    max_difference: float = 0.0
    worst_case: str = ""
    num_comparisons: int = 0

    def add(self, answer: Tensors, alone: Tensors, case: _Case) -> None:
        self.num_comparisons += 1
        for name, reference in alone.items():
            if answer[name].tobytes() == reference.tobytes():
                continue
            self.is_bitwise = False
            self.flipped = self.flipped or _decides_otherwise(answer[name], reference)
            difference = _relative_error(answer[name], reference)
            if difference > self.max_difference or not self.worst_case:
                self.max_difference, self.worst_case = difference, str(case)

    @property
    def verdict(self) -> BatchInvariance:
        if self.is_bitwise:
            return BatchInvariance.BITWISE
        if self.flipped or not self.max_difference <= MAX_DIFFERENCE:
            return BatchInvariance.INTERFERENCE
        return BatchInvariance.TOLERANCE


def audit_invariance(runtime: Runtime, pools: Sequence[Tensors], *, budget_s: float) -> InvarianceAudit:
    """Compare rows alone with the same rows in batches until all cases are seen or `budget_s` is over.

    Every pool is one call whose rows serve as targets and as neighbours. Floats can be made hostile by scaling them;
    integers (token ids, masks) stay what they are. Each target is compared at least once, unless `budget_s` is 0.
    """
    if not runtime.signature.is_batchable:
        answers = [runtime.run(pool) for pool in pools[:MAX_TARGETS]]
        return _audit_of(_Findings(), BatchInvariance.NOT_BATCHABLE, _digest(answers))
    targets = [_target(runtime, pool, row) for pool, row in _choose_targets(pools)]
    digest = _digest([target.alone for target in targets])
    findings = _Findings()
    due_s = time.monotonic() + budget_s
    for index, case in enumerate(_cases(pools[0]) if budget_s else ()):
        if index >= len(targets) and time.monotonic() > due_s:
            break
        target = targets[index % len(targets)]
        answer = runtime.run(_batch(target, case))
        findings.add(_row(answer, case.position), target.alone, case)
    return _audit_of(findings, findings.verdict, digest)


def _audit_of(findings: _Findings, verdict: BatchInvariance, digest: str) -> InvarianceAudit:
    return InvarianceAudit(
        verdict=verdict,
        max_difference=findings.max_difference,
        worst_case=findings.worst_case,
        num_comparisons=findings.num_comparisons,
        answers_sha256=digest,
    )


def _choose_targets(pools: Sequence[Tensors]) -> list[tuple[Tensors, int]]:
    """Take the first row of each pool, then the second of each, up to `MAX_TARGETS`; few of many pools, evenly."""
    chosen = pick_evenly(pools, MAX_TARGETS)
    rows = ((pool, row) for row in range(_num_rows(chosen[0])) for pool in chosen)
    return list(islice(rows, MAX_TARGETS))


def _target(runtime: Runtime, pool: Tensors, row: int) -> _Target:
    return _Target(pool=pool, row=row, alone=runtime.run(_row(pool, row)))


def _cases(pool: Tensors) -> Iterator[_Case]:
    """Yield the hostile neighbours of every size first: they find interference soonest."""
    can_scale = any(array.dtype.kind == "f" for array in pool.values())
    hostile = (Neighbours.OUTLIERS, Neighbours.ZEROS) if can_scale else ()
    for neighbours in (*hostile, Neighbours.ORDINARY):
        for batch_size in BATCH_SIZES:
            for position in sorted({0, batch_size // 2, batch_size - 1}):
                yield _Case(batch_size=batch_size, position=position, neighbours=neighbours)


def _batch(target: _Target, case: _Case) -> dict[str, Array]:
    """Build the batch of a case: neighbours all around, the target at its position."""
    others = (target.row + 1 + np.arange(case.batch_size)) % _num_rows(target.pool)
    batch = {}
    for name, array in target.pool.items():
        rows = _as_neighbours(array[others], case.neighbours)
        rows[case.position] = array[target.row]
        batch[name] = rows
    return batch


def _as_neighbours(rows: Array, neighbours: Neighbours) -> Array:
    if rows.dtype.kind != "f" or neighbours is Neighbours.ORDINARY:
        return rows
    return np.zeros_like(rows) if neighbours is Neighbours.ZEROS else rows * rows.dtype.type(OUTLIER_FACTOR)


def _row(tensors: Tensors, row: int) -> dict[str, Array]:
    return {name: np.ascontiguousarray(array[row : row + 1]) for name, array in tensors.items()}


def _num_rows(pool: Tensors) -> int:
    return len(next(iter(pool.values())))


def _decides_otherwise(answer: Array, reference: Array) -> bool:
    """Tell whether integers differ, or the greatest of a row of at least two scores is another one."""
    if answer.dtype.kind != "f":
        return True
    is_scores = reference.ndim == 2 and reference.shape[1] > 1
    return is_scores and bool(np.argmax(answer) != np.argmax(reference))


def _relative_error(answer: Array, reference: Array) -> float:
    # Here and not above: forwardpass.predict is no part of what a cold start imports.
    from forwardpass.predict.golden import relative_error

    return relative_error(answer, reference)


def _digest(answers: list[dict[str, Array]]) -> str:
    digest = hashlib.sha256()
    for answer in answers:
        for name in sorted(answer):
            digest.update(answer[name].tobytes())
    return digest.hexdigest()
