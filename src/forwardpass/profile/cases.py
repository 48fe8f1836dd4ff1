"""Which rows share which batches in an audit, and in which order: pure planning, cheap and telling cases first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import count

__all__ = ["MAX_BATCH_SIZE", "Block", "Case", "Neighbours", "PoolShape", "Stage", "plan_audit"]

MAX_BATCH_SIZE = 33
"""One more than the widest tile of a vector kernel that we know of, so that remainders of every length occur."""
TELLING_SIZES = (2, 8, 3, 17)
"""Even and odd, and beyond the width of the vector kernels."""
NEXT_SIZES = (16, 4, 5, 32, 33, 1)
"""What servers are most often set to; 1 is a row alone for a second time."""


class Neighbours(StrEnum):
    """What shares the batch with the rows under test."""

    ORDINARY = "ordinary neighbours"
    OUTLIERS = "neighbours scaled by 20"
    ZEROS = "neighbours of zeros"
    MASKED = "neighbours masked after their first position"
    COPIES = "copies of itself"


class Stage(StrEnum):
    """How far an audit is; each stage asks more than the one before."""

    TELLING = "the most telling sizes"
    EVERY_SIZE = "every batch size"
    EVERY_POSITION = "every row at every position"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolShape:
    """A call whose rows make up batches; its first `num_targets` rows are the rows under test."""

    num_rows: int
    num_targets: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One batch: the row of the pool at every position, and the positions that are compared.

    Rows at the other positions are made into `neighbours`.
    """

    pool: int
    rows: tuple[int, ...]
    tested: tuple[int, ...]
    neighbours: Neighbours

    @property
    def batch_size(self) -> int:
        """The number of rows in the batch."""
        return len(self.rows)

    def describe(self, position: int) -> str:
        """Say where a difference was seen."""
        if self.batch_size == 1:
            return "alone, for a second time"
        return f"batch of {self.batch_size}, row {position + 1}, {self.neighbours}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """The cases of one stage at one batch size; a size counts as covered once all of them have run."""

    stage: Stage
    batch_size: int
    cases: tuple[Case, ...]


def plan_audit(
    pools: Sequence[PoolShape], hostile: Sequence[Neighbours], *, max_batch_size: int = MAX_BATCH_SIZE
) -> tuple[Block, ...]:
    """Plan the whole audit; who has less time stops early.

    The first stage puts rows beside the hostile neighbours at a few sizes, which finds interference soonest. The second
    sees every row under test at every size, and every position beside every kind of neighbour. The third sees every row
    under test at every position. No case is planned twice.
    """
    sizes = _order(max_batch_size)
    telling = [size for size in TELLING_SIZES if size <= max_batch_size]
    planned: set[Case] = set()
    blocks = []
    for stage, makes, chosen in (
        (Stage.TELLING, _telling_cases, telling),
        (Stage.EVERY_SIZE, _covering_cases, sizes),
        (Stage.EVERY_POSITION, _thorough_cases, sizes),
    ):
        for number, size in enumerate(chosen):
            cases = tuple(dict.fromkeys(case for case in makes(pools, hostile, size, number) if case not in planned))
            planned.update(cases)
            blocks.append(Block(stage=stage, batch_size=size, cases=cases))
    return tuple(blocks)


def _order(max_batch_size: int) -> list[int]:
    sizes = dict.fromkeys((*TELLING_SIZES, *NEXT_SIZES, *range(1, max_batch_size + 1)))
    return [size for size in sizes if size <= max_batch_size]


def _telling_cases(pools: Sequence[PoolShape], hostile: Sequence[Neighbours], size: int, number: int) -> Iterator[Case]:
    """Yield one batch for each kind of neighbour, from another pool each time."""
    for at, neighbours in enumerate((*hostile, Neighbours.ORDINARY)):
        pool = (number + at) % len(pools)
        if neighbours is Neighbours.ORDINARY:
            yield _ordinary(pools, pool, size, first_row=0)
        else:
            yield _among(pools, pool, size, positions=range(at % 2, size, 2), target=number, neighbours=neighbours)


def _covering_cases(
    pools: Sequence[PoolShape], hostile: Sequence[Neighbours], size: int, number: int
) -> Iterator[Case]:
    """Yield every target of every pool once, and every position beside every kind of neighbour."""
    for pool, shape in enumerate(pools):
        for first_row in range(0, shape.num_targets, size):
            yield _ordinary(pools, pool, size, first_row=first_row)
    if size == 1:
        return
    turns = count(number)
    for neighbours in hostile:
        for phase in (0, 1):
            turn = next(turns)
            positions = range(phase, size, 2)
            yield _among(pools, turn % len(pools), size, positions=positions, target=turn, neighbours=neighbours)
    for pool, shape in enumerate(pools):
        row = number % shape.num_targets
        yield Case(pool=pool, rows=(row,) * size, tested=tuple(range(size)), neighbours=Neighbours.COPIES)


def _thorough_cases(
    pools: Sequence[PoolShape], hostile: Sequence[Neighbours], size: int, number: int
) -> Iterator[Case]:
    """Yield every target at every position, and a single row among hostile ones at every position."""
    for pool, shape in enumerate(pools):
        firsts = {(row - position) % shape.num_rows for row in range(shape.num_targets) for position in range(size)}
        for first_row in sorted(firsts):
            yield _ordinary(pools, pool, size, first_row=first_row)
    if size == 1:
        return
    turns = count(number)
    for neighbours in hostile:
        for position in range(size):
            turn = next(turns)
            lone = range(position, position + 1)
            yield _among(pools, turn % len(pools), size, positions=lone, target=turn, neighbours=neighbours)


def _ordinary(pools: Sequence[PoolShape], pool: int, size: int, *, first_row: int) -> Case:
    """Return consecutive rows; all that are targets are compared."""
    shape = pools[pool]
    rows = tuple((first_row + position) % shape.num_rows for position in range(size))
    tested = _where_targets(rows, range(size), shape)
    return Case(pool=pool, rows=rows, tested=tested, neighbours=Neighbours.ORDINARY)


def _among(
    pools: Sequence[PoolShape], pool: int, size: int, *, positions: range, target: int, neighbours: Neighbours
) -> Case:
    """Return a batch in which targets take `positions` and hostile neighbours the others."""
    shape = pools[pool]
    rows = [(target + 1 + position) % shape.num_rows for position in range(size)]
    for number, position in enumerate(positions):
        rows[position] = (target + number) % shape.num_targets
    return Case(pool=pool, rows=tuple(rows), tested=tuple(positions), neighbours=neighbours)


def _where_targets(rows: Sequence[int], positions: Iterable[int], shape: PoolShape) -> tuple[int, ...]:
    return tuple(position for position in positions if rows[position] < shape.num_targets)
