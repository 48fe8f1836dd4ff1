"""The audit of batch invariance: does a row's answer depend on the rows that share its batch?

Rows are answered alone, then again in batches of 1 to 33, at every position, beside ordinary and hostile neighbours.
Equal bytes everywhere are `bitwise`; equal bytes among certain batch sizes `bitwise-fixed-shapes`; a difference that no
user could notice is `within-tolerance`; anything more is `interference`, and such a variant must not be batched across
requests. INT8 dynamic quantisation, which shares one scale over the batch, is the common case.

The plan (`cases`) and the judgement (`findings`) are decided elsewhere; here is the clock and the runtime.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from forwardpass.core.protocols import Runtime
from forwardpass.core.strings import array_bytes
from forwardpass.core.tensors import Array, Signature, Tensors, concatenate_rows
from forwardpass.core.variants import BatchInvariance
from forwardpass.profile.audits import AnswerDigest, InvarianceAudit, PaddingFinding
from forwardpass.profile.cases import Block, Case, Neighbours, PoolShape, Stage, plan_audit
from forwardpass.profile.findings import Difference, Findings, RowId, compare, typical_norms
from forwardpass.profile.gaps import describe_gaps
from forwardpass.profile.lengths import (
    LengthAxis,
    crop_answer,
    crop_call,
    find_length_axis,
    mask_after_first,
    pad_call,
)
from forwardpass.profile.pacing import pick_evenly, predict_call_s

__all__ = ["audit_invariance", "digest_answers"]

OUTLIER_FACTOR = 20.0
MAX_POOLS = 4
"""Calls that rows are taken from: short, long and in between, where lengths differ."""
MIN_TARGETS, MAX_TARGETS = 6, 33
SHARE_FOR_ALONE = 0.15
"""Of the budget, for the answers of rows alone: each is run once for all the batches that it is compared with."""
SHARE_FOR_DIGESTS = 0.15
SHARE_FOR_PADDING = 0.05
SHARE_FOR_BATCHES = 0.65
MIN_CASES = 2
"""Run whatever the budget: a row beside an outlier, and beside ordinary rows."""
DIGEST_SIZES = (1, 2, 8, 17)
PADDED_BATCH_SIZES = (1, 2, 5)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Bench:
    """The runtime with the rows to audit it with."""

    runtime: Runtime
    pools: tuple[Tensors, ...]
    length_axis: LengthAxis | None
    made_up: frozenset[str]
    """Integer inputs that hold one and the same number everywhere: no sample does, and 0 will do there as well."""

    @property
    def signature(self) -> Signature:
        return self.runtime.signature


def _set_up(runtime: Runtime, pools: Sequence[Tensors]) -> _Bench:
    chosen = tuple(pick_evenly(_by_shape(runtime.signature, pools), MAX_POOLS))
    axis = find_length_axis(runtime.signature)
    mask = axis.mask if axis is not None else ""
    made_up = [
        name
        for name, array in chosen[0].items()
        if array.dtype.kind in "iu" and name != mask and array.size > 1 and bool((array == array.flat[0]).all())
    ]
    return _Bench(runtime=runtime, pools=chosen, length_axis=axis, made_up=frozenset(made_up))


def _by_shape(signature: Signature, pools: Sequence[Tensors]) -> list[dict[str, Array]]:
    """Put calls of one shape together until they have rows enough, so that calls of one row have neighbours, too."""
    merged: dict[tuple[tuple[int, ...], ...], list[dict[str, Array]]] = {}
    for pool in pools:
        group = merged.setdefault(signature.shape_key(pool), [])
        if sum(map(_num_rows, group)) < MAX_TARGETS:
            group.append(dict(pool))
    return [concatenate_rows(group) for group in merged.values()]


def audit_invariance(runtime: Runtime, pools: Sequence[Tensors], *, budget_s: float) -> InvarianceAudit:
    """Compare rows alone with the same rows in batches until all cases are seen or `budget_s` is over.

    Every pool is one call whose rows serve as rows under test and as neighbours. Floats can be made hostile by scaling
    them, masks by hiding the rest of a row; token ids stay what they are. An audit that has found interference ends
    after its first stage. At least two batches are compared.
    """
    if not runtime.signature.is_batchable:
        return InvarianceAudit(
            verdict=BatchInvariance.NOT_BATCHABLE,
            max_difference=0.0,
            worst_case="",
            num_comparisons=0,
            digests=digest_answers(runtime, pools, (1,)),
        )
    bench = _set_up(runtime, pools)
    alone, row_s = _answer_alone(bench, budget_s)
    digests = digest_answers(runtime, pools, _affordable_sizes(row_s, budget_s))
    padding, refusal = _audit_padding(bench, row_s, budget_s)
    findings = Findings(alone)
    blocks = plan_audit(_shapes(bench, alone), _hostile(bench))
    num_run = _run_blocks(bench, findings, blocks, due_s=time.monotonic() + SHARE_FOR_BATCHES * budget_s, row_s=row_s)
    return InvarianceAudit(
        verdict=findings.verdict,
        max_difference=findings.max_difference,
        worst_case=findings.worst_case,
        num_comparisons=findings.num_comparisons,
        num_flips=findings.num_flips,
        exact_batch_sizes=findings.exact_batch_sizes if findings.verdict is BatchInvariance.FIXED_SHAPES else (),
        covered_batch_sizes=findings.covered_batch_sizes,
        gaps=(
            *refusal,
            *describe_gaps(
                blocks,
                num_run,
                covered=findings.covered_batch_sizes,
                is_mixing=findings.is_mixing,
                rows_are_alike=_rows_are_alike(bench),
            ),
        ),
        padding=padding,
        digests=digests,
    )


def digest_answers(runtime: Runtime, pools: Sequence[Tensors], batch_sizes: Sequence[int]) -> tuple[AnswerDigest, ...]:
    """Hash the answers to a few rows in batches of every given size; another process compares them with its own."""
    if not runtime.signature.is_batchable:
        answers = [runtime.run(pool) for pool in pools[:MIN_TARGETS]]
        return (AnswerDigest(batch_size=1, sha256=_digest(answers)),)
    return tuple(
        AnswerDigest(
            batch_size=size,
            sha256=_digest([runtime.run(call) for call in _digest_calls(runtime.signature, pools, size)]),
        )
        for size in batch_sizes
    )


# --- rows alone ----------------------------------------------------------------------------------------------------


def _answer_alone(bench: _Bench, budget_s: float) -> tuple[dict[RowId, dict[str, Array]], float]:
    """Answer rows one at a time, as many as a share of the budget allows; return the shortest time, too."""
    alone: dict[RowId, dict[str, Array]] = {}
    row_s = float("inf")
    due_s = time.monotonic() + SHARE_FOR_ALONE * budget_s
    for target in _targets(bench.pools):
        started = time.monotonic()
        if len(alone) >= MIN_TARGETS and started > due_s:
            break
        alone[target] = bench.runtime.run(_row(bench.pools[target.pool], target.row))
        row_s = min(row_s, time.monotonic() - started)
    return alone, row_s


def _targets(pools: Sequence[Tensors]) -> list[RowId]:
    """Take the first row of each pool, then the second of each."""
    most = max(_num_rows(pool) for pool in pools)
    rows = (
        RowId(pool=number, row=row) for row in range(most) for number, pool in enumerate(pools) if row < _num_rows(pool)
    )
    return list(islice(rows, MAX_TARGETS))


def _shapes(bench: _Bench, alone: Mapping[RowId, Tensors]) -> list[PoolShape]:
    targets = [row.pool for row in alone]
    return [
        PoolShape(num_rows=_num_rows(pool), num_targets=targets.count(number))
        for number, pool in enumerate(bench.pools)
    ]


def _affordable_sizes(row_s: float, budget_s: float) -> list[int]:
    """Return the batch sizes whose answers every process hashes; rows alone in any case."""
    return [size for size in DIGEST_SIZES if size == 1 or size * row_s <= SHARE_FOR_DIGESTS * budget_s]


def _digest_calls(signature: Signature, pools: Sequence[Tensors], size: int) -> list[dict[str, Array]]:
    """Return rows of different pools alone, or one batch of the largest rows."""
    if size == 1:
        chosen = pick_evenly(pools, MIN_TARGETS)
        return [_row(chosen[target.pool], target.row) for target in _targets(chosen)[:MIN_TARGETS]]
    largest = _by_shape(signature, pools)[-1]
    rows = np.arange(size) % _num_rows(largest)
    return [{name: array[rows] for name, array in largest.items()}]


# --- batches -------------------------------------------------------------------------------------------------------


def _hostile(bench: _Bench) -> list[Neighbours]:
    kinds = []
    if any(array.dtype.kind == "f" for array in bench.pools[0].values()):
        kinds.append(Neighbours.OUTLIERS)
    if kinds or bench.made_up:
        kinds.append(Neighbours.ZEROS)
    if bench.length_axis is not None:
        kinds.append(Neighbours.MASKED)
    return kinds


def _run_blocks(bench: _Bench, findings: Findings, blocks: Sequence[Block], *, due_s: float, row_s: float) -> list[int]:
    """Run what fits before `due_s`; return how many cases of each block ran.

    A batch that would end too late is left out, and so is everything else of its size; smaller ones may still fit.
    """
    measured_s = {1: row_s}
    too_large: set[int] = set()
    num_run = [0] * len(blocks)
    num_cases = 0
    for number, block in enumerate(blocks):
        if block.stage is not Stage.TELLING and findings.is_mixing:
            break
        for case in block.cases:
            ends_s = time.monotonic() + (predict_call_s(measured_s, case.batch_size) or 0.0)
            if num_cases >= MIN_CASES and (case.batch_size in too_large or ends_s > due_s):
                too_large.add(case.batch_size)
                break
            started = time.monotonic()
            answers = bench.runtime.run(_batch(bench, case))
            took_s = time.monotonic() - started
            # The least, since one call that something else held up would rule out all later ones of its size.
            measured_s[case.batch_size] = min(took_s, measured_s.get(case.batch_size, took_s))
            findings.add(case, answers)
            num_run[number] += 1
            num_cases += 1
        else:
            findings.finish(block)
    return num_run


def _batch(bench: _Bench, case: Case) -> dict[str, Array]:
    """Build the batch of a case: the rows under test as they are, the others made into its neighbours."""
    rows = np.array(case.rows)
    others = np.setdiff1d(np.arange(case.batch_size), case.tested)
    batch = {}
    for name, array in bench.pools[case.pool].items():
        batch[name] = array[rows]
        if len(others):
            batch[name][others] = _as_neighbours(bench, name, batch[name][others], case.neighbours)
    return batch


def _as_neighbours(bench: _Bench, name: str, rows: Array, neighbours: Neighbours) -> Array:
    is_float = rows.dtype.kind == "f"
    if neighbours is Neighbours.OUTLIERS and is_float:
        return rows * rows.dtype.type(OUTLIER_FACTOR)
    if neighbours is Neighbours.ZEROS and (is_float or name in bench.made_up):
        return np.zeros_like(rows)
    is_mask = bench.length_axis is not None and name == bench.length_axis.mask
    return mask_after_first(rows) if neighbours is Neighbours.MASKED and is_mask else rows


def _rows_are_alike(bench: _Bench) -> bool:
    """Tell whether no neighbour differs from the row under test but for being made hostile."""
    return all(
        array_bytes(array[:1]) * _num_rows(pool) == array_bytes(array)
        for pool in bench.pools
        for array in pool.values()
    )


# --- lengths -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Padded:
    """One comparison of a padded row; `where` is empty if not a bit differed."""

    difference: Difference
    where: str


def _audit_padding(bench: _Bench, row_s: float, budget_s: float) -> tuple[PaddingFinding | None, tuple[str, ...]]:
    """Compare short rows alone with the same rows padded to longer ones; say so if the model takes no such lengths."""
    if bench.length_axis is None:
        return None, ()
    sizes = [size for size in PADDED_BATCH_SIZES if size == 1 or size * row_s <= SHARE_FOR_PADDING * budget_s]
    try:
        compared = list(_pad_rows(bench, bench.length_axis, sizes))
    except Exception:  # runtimes' own errors share no base but this one, and no sample had such a length
        return None, ("Padding was not compared: the model does not take shorter rows than those given.",)
    if not compared:
        return None, ()
    worst = max(compared, key=lambda item: (item.where != "", item.difference.error))
    finding = PaddingFinding(
        axis=bench.length_axis.axis,
        max_difference=worst.difference.error,
        worst_case=worst.where,
        num_comparisons=len(compared),
        num_flips=sum(item.difference.is_flip for item in compared),
    )
    return finding, ()


def _pad_rows(bench: _Bench, found: LengthAxis, sizes: Sequence[int]) -> Iterator[_Padded]:
    """Cut the beginning off a long row, and compare it alone with itself padded beside whole rows.

    No call is longer than what was given, which a model may not take.
    """
    pool = max(bench.pools, key=lambda pool: pool[found.mask].shape[1])
    length = pool[found.mask].shape[1]
    for short in sorted({length // 2, length - 1} - {0, length}):
        cropped = crop_call(_row(pool, 0), bench.signature, found.axis, short)
        alone = bench.runtime.run(cropped)
        padded = pad_call(cropped, bench.signature, found.axis, length)
        for size in sizes:
            longer = [_row(pool, (1 + number) % _num_rows(pool)) for number in range(size - 1)]
            answers = bench.runtime.run(concatenate_rows([*longer, padded]))
            answer = crop_answer(_row(answers, size - 1), alone)
            is_same = all(array_bytes(answer[name]) == array_bytes(array) for name, array in alone.items())
            where = f"{short} of {length} positions, {'alone' if size == 1 else f'in a batch of {size}'}"
            yield _Padded(difference=compare(answer, alone, typical_norms([alone])), where="" if is_same else where)


# --- small things --------------------------------------------------------------------------------------------------


def _row(tensors: Tensors, row: int) -> dict[str, Array]:
    return {name: np.ascontiguousarray(array[row : row + 1]) for name, array in tensors.items()}


def _num_rows(pool: Tensors) -> int:
    return len(next(iter(pool.values())))


def _digest(answers: Sequence[Tensors]) -> str:
    digest = hashlib.sha256()
    for answer in answers:
        for name in sorted(answer):
            digest.update(array_bytes(answer[name]))
    return digest.hexdigest()
