"""What an audit left out, in sentences: a verdict is as strong as the comparisons behind it."""

from __future__ import annotations

from collections.abc import Sequence

from forwardpass.profile.cases import Block, Stage

__all__ = ["describe_gaps", "join_sizes"]


def describe_gaps(
    blocks: Sequence[Block],
    num_run: Sequence[int],
    *,
    covered: Sequence[int],
    is_mixing: bool,
    rows_are_alike: bool,
) -> tuple[str, ...]:
    """Return a sentence for each thing that was planned and not done; `num_run` counts the cases run of each block."""
    gaps = []
    if rows_are_alike:
        gaps.append("All rows were alike, as made-up integers are: give real samples that differ.")
    planned = {block.batch_size for block in blocks if block.stage is Stage.EVERY_SIZE}
    missing = sorted(planned - set(covered))
    if is_mixing:
        gaps.append("Interference was found, and the rest was left out.")
    elif missing:
        gaps.append(f"Not covered for lack of time: batch sizes {join_sizes(missing)}.")
    else:
        thorough = [
            block.batch_size
            for block, run in zip(blocks, num_run, strict=True)
            if block.stage is Stage.EVERY_POSITION and run < len(block.cases)
        ]
        if thorough:
            sizes = join_sizes(sorted(thorough))
            gaps.append(f"Every position was seen, but not every row at every position: batch sizes {sizes}.")
    return tuple(gaps)


def join_sizes(sizes: Sequence[int]) -> str:
    """Write increasing sizes, three or more in a row as a range.

    >>> join_sizes((1, 2, 4, 5, 6, 7, 9))
    '1, 2, 4-7, 9'
    """
    runs: list[list[int]] = []
    for size in sizes:
        if runs and size == runs[-1][-1] + 1:
            runs[-1].append(size)
        else:
            runs.append([size])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
