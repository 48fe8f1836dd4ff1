"""The decisions of pruning and distillation, apart from any network: which channels, which layers, which rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

__all__ = [
    "Notch",
    "Trial",
    "channel_levels",
    "channel_multiples",
    "fewest_notches",
    "kept_layers",
    "learning_rate_factor",
    "most_notches",
    "num_weight_bits",
    "order_notches",
]

MAX_LEVELS = 7
SHARE_OF_WARM_UP = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What it cost to prune one group alone down to `num_channels`: error of the outputs, multiply-adds left."""

    group: str
    num_channels: int
    error: float
    num_multiply_adds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Notch:
    """The next step down for one group."""

    group: str
    num_channels: int


def channel_multiples(instruction_sets: Sequence[str]) -> tuple[int, ...]:
    """Return what the channel counts that are left should be multiples of, the best first.

    AVX-512 holds 16 numbers in a register: a residual CNN pruned to half its multiply-adds was 1.83 times as fast
    with multiples of 16 and 1.76 times with multiples of 8 (benchmarks/bench_lean.py).

    >>> channel_multiples(("avx2", "avx512f")), channel_multiples(("avx2", "fma"))
    ((16, 8), (8,))
    """
    return (16, 8) if "avx512f" in instruction_sets else (8,)


def num_weight_bits(instruction_sets: Sequence[str]) -> int:
    """Return the bits of weights in 8-bit products: without these instructions, x86 cuts sums of full products off.

    >>> num_weight_bits(("avx2", "avx512f", "avx512-vnni")), num_weight_bits(("avx2",)), num_weight_bits(("neon",))
    (8, 7, 8)
    """
    is_x86 = any(name.startswith("avx") for name in instruction_sets)
    return 7 if is_x86 and not {"avx-vnni", "avx512-vnni", "amx-int8"} & set(instruction_sets) else 8


def channel_levels(num_channels: int, *, round_to: int, max_levels: int) -> tuple[int, ...]:
    """Return the channel counts that a group is tried at, in descending order: multiples of `round_to`, never none.

    >>> channel_levels(64, round_to=8, max_levels=3)
    (40, 24, 8)
    >>> channel_levels(20, round_to=8, max_levels=7)
    (16, 8)
    >>> channel_levels(8, round_to=8, max_levels=7)
    ()
    """
    every = list(range(round_to * math.ceil(num_channels / round_to) - round_to, 0, -round_to))
    num_levels = min(max_levels, MAX_LEVELS, len(every))
    return tuple(every[math.ceil((number + 1) * len(every) / num_levels) - 1] for number in range(num_levels))


def order_notches(trials: Iterable[Trial], *, num_multiply_adds: int) -> tuple[Notch, ...]:
    """Order all steps down by what they cost for what they save; of one group, the smaller step comes first."""
    waiting: dict[str, list[Trial]] = {}
    for trial in sorted(trials, key=lambda trial: -trial.num_channels):
        waiting.setdefault(trial.group, []).append(trial)
    reached = dict.fromkeys(waiting, (0.0, num_multiply_adds))
    notches = []
    while waiting:
        group = min(waiting, key=lambda name: (_price(waiting[name][0], *reached[name]), name))
        trial = waiting[group].pop(0)
        notches.append(Notch(group=group, num_channels=trial.num_channels))
        reached[group] = max(trial.error, reached[group][0]), trial.num_multiply_adds
        if not waiting[group]:
            del waiting[group]
    return tuple(notches)


def _price(trial: Trial, error: float, num_multiply_adds: int) -> float:
    """Return the error that a step adds per multiply-add that it saves."""
    saved = num_multiply_adds - trial.num_multiply_adds
    return max(trial.error - error, 0.0) / saved if saved > 0 else math.inf


def channels_left(notches: Sequence[Notch]) -> dict[str, int]:
    """Return the number of channels that each group has after all these steps."""
    return {notch.group: notch.num_channels for notch in notches}


def fewest_notches(num_notches: int, is_enough: Callable[[int], bool]) -> int | None:
    """Return the smallest number of steps that is enough, or None if all of them are not.

    >>> fewest_notches(10, lambda number: number >= 4), fewest_notches(10, lambda number: False)
    (4, None)
    """
    if not is_enough(num_notches):
        return None
    low, high = 0, num_notches
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle + 1, high)
    return high


def most_notches(num_notches: int, holds: Callable[[int], bool]) -> int:
    """Return a number of steps that holds while the next one tried did not; 0 if none holds.

    >>> most_notches(10, lambda number: number <= 7)
    7
    """
    low, high = 0, num_notches
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def kept_layers(num_layers: int, num_kept: int) -> tuple[int, ...]:
    """Return the layers that a student starts from: the last of each of `num_kept` equal stretches.

    So the student's layer i has to end up where the teacher is after its stretch i (as in TinyBERT's mapping).

    >>> kept_layers(12, 4), kept_layers(6, 2), kept_layers(5, 2)
    ((2, 5, 8, 11), (2, 5), (2, 4))
    """
    return tuple(math.ceil((number + 1) * num_layers / num_kept) - 1 for number in range(num_kept))


def learning_rate_factor(step: int, num_steps: int) -> float:
    """Return the share of the full rate at a step: up in a line, down as half a cosine.

    >>> [round(learning_rate_factor(step, 100), 3) for step in (0, 9, 54, 99)]
    [0.1, 1.0, 0.517, 0.0]
    """
    num_warm_up = max(1, round(num_steps * SHARE_OF_WARM_UP))
    if step < num_warm_up:
        return (step + 1) / num_warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - num_warm_up) / max(1, num_steps - num_warm_up)))
