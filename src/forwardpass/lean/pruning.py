"""Structured pruning: whole channels go, least harm per multiply-add first, until the target or the floor is met."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from forwardpass.core.protocols import Progress
from forwardpass.core.samples import Samples
from forwardpass.core.tensors import Array
from forwardpass.errors import CannotPrune, InvalidOption, NothingGained
from forwardpass.lean.counting import call, count_multiply_adds, example_of
from forwardpass.lean.planning import (
    MAX_LEVELS,
    Notch,
    Trial,
    channel_levels,
    channel_multiples,
    channels_left,
    fewest_notches,
    most_notches,
    order_notches,
)
from forwardpass.lean.values import PruneSettings
from forwardpass.profile import describe_machine
from forwardpass.runtimes.torch import left_as_found, named_outputs

__all__ = ["PrunedGroup", "Pruning", "SkippedGroup", "check_prunable", "prune_module"]

NUM_TRIAL_ROWS = 64
"""Enough to tell groups apart, whose errors differ by factors."""

SHARE_OF_TRIALS = 0.5
MAX_REASONS = 3

Refine = Callable[[nn.Module, int, Progress], nn.Module]
"""Trains a pruned copy; the number tells one attempt from another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunedGroup:
    """A layer that gives fewer channels than before, and so does everything that hangs on it."""

    name: str
    num_channels_before: int
    num_channels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedGroup:
    """A layer whose channels stay, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pruning:
    """The pruned copy, its multiply-adds per row before and after, and what became of each group of channels."""

    module: nn.Module
    num_multiply_adds_before: int
    num_multiply_adds: int
    round_to: int
    """What the channel counts are multiples of."""
    groups: tuple[PrunedGroup, ...]
    skipped: tuple[SkippedGroup, ...]


@dataclass(slots=True, kw_only=True, eq=False)
class _Work:
    """A module while it is pruned."""

    module: nn.Module
    example: dict[str, Array]
    sizes: dict[str, int]
    round_to: int
    skipped: dict[str, str] = field(default_factory=dict)

    def apply(self, notches: Sequence[Notch]) -> nn.Module:
        """Prune a copy, group by group; a group that breaks it is rolled back and left alone from then on."""
        pruned = self.module
        for name, num_channels in channels_left(notches).items():
            if name not in self.skipped:
                pruned, reason = _without(pruned, name, num_channels, self.example)
                if reason:
                    self.skipped[name] = reason
        return pruned


def prune_module(
    module: nn.Module,
    samples: Samples,
    *,
    settings: PruneSettings,
    refine: Refine | None = None,
    holds: Callable[[nn.Module], bool] | None = None,
    progress: Progress,
) -> Pruning:
    """Return a copy of `module` with fewer channels; the module itself stays as it is.

    Each group of channels that belong together is pruned alone first, at several counts, to see what that does to
    the outputs for the samples and to the multiply-adds. Then groups shrink in the order of harm per multiply-add
    saved: until `settings.share` of them is gone, or without a share, as far as `holds` allows. `refine` trains the
    copy, for each attempt where `holds` is asked and otherwise once.

    Raises:
        CannotPrune: the module cannot be traced, or no channel can go.
        InvalidOption: even with all that can go, less than the share is gone.
        NothingGained: `holds` refuses every step.
    """
    multiples = _multiples(settings)
    for round_to in multiples[:-1]:
        with suppress(CannotPrune, InvalidOption):  # where layers are this narrow, smaller steps may still do
            return _prune(module, samples, settings, round_to, refine, holds, progress)
    return _prune(module, samples, settings, multiples[-1], refine, holds, progress)


def check_prunable(module: nn.Module, samples: Samples, settings: PruneSettings) -> None:
    """Look for one group of channels that can go, as `prune_module` does for all of them.

    Raises:
        CannotPrune: the module cannot be traced, or no channel can go.
        MissingExtra: torch-pruning is not installed.
    """
    example = example_of(samples)
    sizes, round_to = _group_sizes(module, example), _multiples(settings)[-1]
    work = _Work(module=module, example=example, sizes=sizes, round_to=round_to)
    for name, size in sizes.items():
        levels = channel_levels(size, round_to=round_to, max_levels=1)
        if not levels:
            work.skipped[name] = _too_narrow(size, round_to)
            continue
        _, work.skipped[name] = _without(module, name, levels[0], example)
        if not work.skipped[name]:
            return
    raise _nothing_goes(work)


def _multiples(settings: PruneSettings) -> tuple[int, ...]:
    return (settings.round_to,) if settings.round_to else channel_multiples(describe_machine().instruction_sets)


def _too_narrow(num_channels: int, round_to: int) -> str:
    return f"it has {num_channels} channels, and they go {round_to} at a time"


def _prune(
    module: nn.Module,
    samples: Samples,
    settings: PruneSettings,
    round_to: int,
    refine: Refine | None,
    holds: Callable[[nn.Module], bool] | None,
    progress: Progress,
) -> Pruning:
    with left_as_found(module):
        torch.set_num_threads(1)  # layers this small wait for a second thread longer than it works
        module.eval()
        example = example_of(samples)
        before = count_multiply_adds(module, example)
        work = _Work(module=module, example=example, sizes=_group_sizes(module, example), round_to=round_to)
        trials = _try_groups(work, samples, settings, before, _part(progress, 0, SHARE_OF_TRIALS))
        notches = order_notches(trials, num_multiply_adds=before)
        if not notches:
            raise _nothing_goes(work)
        rest = _part(progress, SHARE_OF_TRIALS, 1 - SHARE_OF_TRIALS)
        if settings.share is not None:
            pruned = _to_share(work, notches, before, settings.share)
            pruned = refine(pruned, 0, rest) if refine else pruned
        else:
            pruned = _to_floor(work, notches, refine, holds, rest)
    return _summary(work, pruned, before)


def _try_groups(work: _Work, samples: Samples, settings: PruneSettings, before: int, progress: Progress) -> list[Trial]:
    """Prune each group alone, at several channel counts; a group that breaks the module is skipped from then on."""
    few = samples.head(NUM_TRIAL_ROWS)
    theirs = _outputs(work.module, few)
    max_levels = max(1, min(MAX_LEVELS, settings.max_trials // max(1, len(work.sizes))))
    trials = []
    for number, (name, size) in enumerate(work.sizes.items()):
        progress(f"pruning {name} alone", done=number / len(work.sizes))
        levels = channel_levels(size, round_to=work.round_to, max_levels=max_levels)
        if not levels:
            work.skipped[name] = _too_narrow(size, work.round_to)
        for num_channels in levels:
            pruned, reason = _without(work.module, name, num_channels, work.example)
            if reason:
                work.skipped[name] = reason
                break
            trial = Trial(
                group=name,
                num_channels=num_channels,
                error=_relative_error(_outputs(pruned, few), theirs),
                num_multiply_adds=count_multiply_adds(pruned, work.example),
            )
            trials.append(trial)
    return [trial for trial in trials if trial.group not in work.skipped]


def _to_share(work: _Work, notches: Sequence[Notch], before: int, share: float) -> nn.Module:
    limit = before * (1 - share)

    def left(number: int) -> int:
        return count_multiply_adds(work.apply(notches[:number]), work.example)

    number = fewest_notches(len(notches), lambda number: left(number) <= limit)
    if number is None:
        most = 1 - left(len(notches)) / before
        expected = f"at most {most:.0%}, which is what all groups of channels together can give{_but_for(work)}"
        raise InvalidOption(option="--prune", value=f"{share:.0%}", expected=expected)
    return work.apply(notches[:number])


def _to_floor(
    work: _Work,
    notches: Sequence[Notch],
    refine: Refine | None,
    holds: Callable[[nn.Module], bool] | None,
    progress: Progress,
) -> nn.Module:
    """Take as many steps as `holds` allows, every attempt trained before it is judged."""
    best: dict[int, nn.Module] = {}
    num_attempts = max(1, len(notches).bit_length())

    def is_good(number: int) -> bool:
        part = _part(progress, min(len(tried) / num_attempts, 0.99), 1 / num_attempts)
        tried.append(number)
        pruned = work.apply(notches[:number])
        pruned = refine(pruned, number, part) if refine else pruned
        best[number] = pruned
        return holds is None or holds(pruned)

    tried: list[int] = []
    number = most_notches(len(notches), is_good)
    if number == 0:
        raise NothingGained(
            reason="the limit holds with no group of channels pruned, not even by one step; allow a larger "
            "--max-drop, or give more samples to learn from with --train-data"
        )
    return best[number]


def _without(module: nn.Module, name: str, num_channels: int, example: Mapping[str, Array]) -> tuple[nn.Module, str]:
    from forwardpass.lean.dependencies import without_channels

    return without_channels(module, name, num_channels, example)


def _group_sizes(module: nn.Module, example: Mapping[str, Array]) -> dict[str, int]:
    from forwardpass.lean.dependencies import channel_groups

    return {group.name: group.num_channels for group in channel_groups(module, example)}


def _nothing_goes(work: _Work) -> CannotPrune:
    return CannotPrune(
        model=type(work.module).__name__,
        reason=f"no group of channels can go ({_reasons(work.skipped) or 'it has no layers'})",
    )


def _but_for(work: _Work) -> str:
    return f"; these stay as they are: {_reasons(work.skipped)}" if work.skipped else ""


def _reasons(skipped: Mapping[str, str]) -> str:
    told = [f"{name}: {reason}" for name, reason in list(skipped.items())[:MAX_REASONS]]
    return "; ".join([*told, *([f"and {len(skipped) - len(told)} more"] if len(skipped) > len(told) else [])])


def _summary(work: _Work, pruned: nn.Module, before: int) -> Pruning:
    left = {name: _num_outputs(pruned.get_submodule(name)) for name in work.sizes}
    groups = [
        PrunedGroup(name=name, num_channels_before=_num_outputs(work.module.get_submodule(name)), num_channels=size)
        for name, size in left.items()
        if size != _num_outputs(work.module.get_submodule(name))
    ]
    return Pruning(
        module=copy.deepcopy(pruned) if pruned is work.module else pruned,
        num_multiply_adds_before=before,
        num_multiply_adds=count_multiply_adds(pruned, work.example),
        round_to=work.round_to,
        groups=tuple(groups),
        skipped=tuple(SkippedGroup(name=name, reason=reason) for name, reason in work.skipped.items()),
    )


def _num_outputs(layer: nn.Module) -> int:
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)  # type: ignore[arg-type]


def _outputs(module: nn.Module, samples: Samples) -> list[torch.Tensor]:
    answers = [named_outputs(call(module, group.inputs)) for group in samples.batches(NUM_TRIAL_ROWS)]
    return [value.float() for answer in answers for value in answer.values()]


def _relative_error(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> float:
    pairs = zip(ours, theirs, strict=True)
    errors = [float((one - two).norm() / two.norm().clamp_min(1e-12)) for one, two in pairs]
    return float(np.mean(errors))


def _part(progress: Progress, start: float, share: float) -> Progress:
    def show(text: str, *, done: float) -> None:
        progress(text, done=start + share * done)

    return show
