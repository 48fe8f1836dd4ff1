"""A model as clients see it: a name, its versions, their labels, and who gets which."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from forwardpass.core.batching import LOWEST_PRIORITY, NORMAL_PRIORITY
from forwardpass.core.canary import CanaryLimits, Verdict
from forwardpass.core.tensors import Array
from forwardpass.errors import NotFound, RequestError
from forwardpass.serve.canaries import Trials
from forwardpass.serve.request import Answer
from forwardpass.serve.served import ServedVersion
from forwardpass.serve.settings import ModelSettings
from forwardpass.serve.tracing import Trace
from forwardpass.serve.versions import ModelVersion

__all__ = ["Model", "ModelConfig", "Traffic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Who gets which version.

    `labels` name versions. `split` gives labels or versions their share of the requests that name none; without it
    the one labelled `stable` gets all, or else the newest. The version `shadow` gets a copy of every request, and its
    answers are compared and thrown away. With `rollback`, a version of the split that is worse than the stable one
    loses its share to it; `withdrawn` says which have, by number, and why.
    """

    labels: Mapping[str, str] = field(default_factory=dict)
    split: Mapping[str, float] = field(default_factory=dict)
    shadow: str | None = None
    rollback: CanaryLimits | None = field(default_factory=CanaryLimits)
    withdrawn: Mapping[str, str] = field(default_factory=dict)

    def number(self, name: str) -> str:
        """Return the version that a label or number stands for."""
        return self.labels.get(name, name)

    @property
    def stable(self) -> str | None:
        """The version of the split that the others are compared with: the one labelled so, or that of most requests."""
        shares: Counter[str] = Counter()
        for name, share in self.split.items():
            shares[self.number(name)] += share  # type: ignore[assignment]  # shares are floats
        if self.labels.get("stable") in shares:
            return self.labels["stable"]
        return max(shares, key=lambda number: (shares[number], -int(number)), default=None)

    def without(self, number: str, reason: str) -> Traffic:
        """Return the traffic in which the share of a version has gone back to the stable one."""
        lost = sum(share for name, share in self.split.items() if self.number(name) == number)
        heir = next(name for name in self.split if self.number(name) == self.stable)
        split = {name: 0.0 if self.number(name) == number else share for name, share in self.split.items()}
        split[heir] += lost
        return replace(self, split=split, withdrawn={**self.withdrawn, number: reason})

    @property
    def wanted(self) -> tuple[str, ...]:
        """The versions that are named, by number."""
        named = (*self.labels.values(), *self.split, *([self.shadow] if self.shadow else []))
        return tuple(dict.fromkeys(self.labels.get(name, name) for name in named))

    def default(self, numbers: Iterable[str]) -> str:
        """Return which of these versions gets the requests that name none, if there is no split."""
        shadow = self.labels.get(self.shadow, self.shadow) if self.shadow else None
        others = [number for number in numbers if number != shadow] or [*numbers]
        return self.labels.get("stable") or max(others, key=int)

    def shadows_itself(self, numbers: Iterable[str]) -> bool:
        """Tell whether the shadow is the only one of these versions that answers requests that name none."""
        shared = {self.number(name) for name, share in self.split.items() if share > 0}
        return self.shadow is not None and (shared or {self.default(numbers)}) == {self.number(self.shadow)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Where a model is and how it is to be served.

    `path` is a bundle, which is then version 1, or a folder whose subfolders 1, 2, 3 … are bundles.
    """

    name: str
    path: Path
    settings: ModelSettings = field(default_factory=ModelSettings)
    traffic: Traffic = field(default_factory=Traffic)


class Model:
    """The loaded versions of one model."""

    def __init__(
        self,
        name: str,
        versions: Sequence[ModelVersion],
        traffic: Traffic,
        *,
        on_verdict: Callable[[str, Verdict], None],
    ) -> None:
        self.name = name
        self.versions = {version.number: version for version in versions}
        self.traffic = traffic
        self.default = self.versions[traffic.default(self.versions)]
        self._by_name = self.versions | {label: self.versions[number] for label, number in traffic.labels.items()}
        self.has_idle_shadow = traffic.shadows_itself(self.versions)
        """The version that was to be the shadow answers everything itself, so that nothing is copied to it."""
        self._shadow = self._by_name[traffic.shadow] if traffic.shadow and not self.has_idle_shadow else None
        self._shares = [(self._by_name[name], share) for name, share in traffic.split.items() if share > 0]
        self._random = random.Random(name)  # noqa: S311 - which of two versions somebody gets need not be a secret
        self._trials = self._put_on_trial(on_verdict)

    def _put_on_trial(self, on_verdict: Callable[[str, Verdict], None]) -> Trials | None:
        """Compare the versions of a split, if there are several and it is wished for."""
        shared = {version.number: version for version, _ in self._shares}
        stable, limits = self.traffic.stable, self.traffic.rollback
        if limits is None or stable not in shared or len(shared) < 2:
            return None
        canaries = [version for number, version in shared.items() if number != stable]
        return Trials(shared[stable], canaries, limits, on_verdict)

    @property
    def is_ready(self) -> bool:
        """Whether every version is there to answer."""
        return all(version.is_ready for version in self.versions.values())

    def plain_targets(self) -> list[tuple[str | None, ModelVersion]]:
        """Return the names, None for none, whose requests go to one version and nowhere else."""
        if self._shadow is not None:
            return []
        named: list[tuple[str | None, ModelVersion]] = list(self._by_name.items())
        return named if self._shares else [(None, self.default), *named]

    @property
    def compared(self) -> list[ModelVersion]:
        """The versions whose answers are or were compared with those of another one."""
        return [
            version
            for version in self.versions.values()
            if version is self._shadow or version.metrics.shadow_difference.num_values
        ]

    @property
    def names(self) -> tuple[str, ...]:
        """Every number and label that a version answers to."""
        return tuple(self._by_name)

    def described(self, name: str | None) -> ModelVersion:
        """Return the version of a number or label to describe it; without a name, the default one.

        Raises:
            NotFound: there is no such version.
        """
        return self.default if name is None else self.version(name)

    def choices(self, name: str | None) -> tuple[ModelVersion, ...]:
        """Return the versions that a request may get which names this number or label, or none.

        Raises:
            NotFound: there is no such version.
        """
        if name is None and self._shares:
            return tuple(version for version, _ in self._shares)
        return (self.described(name),)

    def version(self, name: str | None) -> ModelVersion:
        """Return the version of a number or label; without a name, one by the shares of the split.

        Raises:
            NotFound: there is no such version.
        """
        if name is not None:
            if name not in self._by_name:
                raise NotFound(what=f"version '{name[:64]}' of '{self.name}'", available=self.names)
            return self._by_name[name]
        if not self._shares:
            return self.default
        version = self._draw()
        return version if self._trials is None else self._trials.drawn(version)

    def _draw(self) -> ModelVersion:
        """Return a version by the shares of the split."""
        at = self._random.random() * sum(share for _, share in self._shares)
        for version, share in self._shares:
            at -= share
            if at < 0:
                return version
        return self._shares[0][0]

    def submit(
        self,
        version: ServedVersion,
        tensors: dict[str, Array],
        num_rows: int,
        answer: Answer,
        *,
        timeout_s: float | None = None,
        priority: int = NORMAL_PRIORITY,
        trace: Trace | None = None,
    ) -> Callable[[], None]:
        """Queue a request for `version`, and a copy of it for the shadow; the returned function gives it up.

        Raises:
            RequestError: it is refused.
        """
        if trace is not None:
            answer = trace.watch(answer, version.metrics, model=self.name, version=version.number, num_rows=num_rows)
        if self._shadow is None or version.number == self._shadow.number:
            return version.submit(tensors, num_rows, answer, timeout_s=timeout_s, priority=priority)
        comparison = _Comparison(self._shadow)
        give_up = version.submit(
            tensors, num_rows, partial(comparison.answered, answer), timeout_s=timeout_s, priority=priority
        )
        try:
            self._shadow.submit(tensors, num_rows, comparison.shadowed, priority=LOWEST_PRIORITY)
        except RequestError:  # the shadow may miss what it has no time for; its metrics count that
            comparison.shadowed(None)
        return give_up


class _Comparison:
    """Waits for the answers of a version and of its shadow, and notes how far apart they are."""

    def __init__(self, shadow: ModelVersion) -> None:
        self._shadow = shadow
        self._answer: Mapping[str, Array] | None = None
        self._shadows: Mapping[str, Array] | None = None
        self._is_void = False

    def answered(self, answer: Answer, result: dict[str, Array] | RequestError) -> None:
        if isinstance(result, RequestError):
            self._is_void = True
        elif not self._is_void:
            self._answer = {name: array.copy() for name, array in result.items()}
            self._compare()
        answer(result)

    def shadowed(self, result: dict[str, Array] | RequestError | None) -> None:
        if result is None or isinstance(result, RequestError):
            self._is_void = True
        elif not self._is_void:
            self._shadows = {name: array.copy() for name, array in result.items()}
            self._compare()

    def _compare(self) -> None:
        if self._answer is not None and self._shadows is not None:
            self._shadow.metrics.shadow_difference.observe(_difference(self._answer, self._shadows))


def _difference(answer: Mapping[str, Array], other: Mapping[str, Array]) -> float:
    """Return the largest difference relative to the largest value; infinity where the outputs cannot be compared.

    Of strings, the share that differs.
    """
    worst = 0.0
    for name, array in answer.items():
        theirs = other.get(name)
        if theirs is None or theirs.shape != array.shape or array.dtype.kind not in "fiubO":
            return float("inf")
        if array.dtype.kind == "O":
            worst = max(worst, float(np.mean(array != theirs))) if array.size else worst
            continue
        if array.size:
            ours, theirs = array.astype(np.float64), theirs.astype(np.float64)
            with np.errstate(invalid="ignore"):
                gap = float(np.max(np.abs(ours - theirs)))
            worst = max(worst, gap / max(float(np.max(np.abs(ours))), 1e-12)) if np.isfinite(gap) else float("inf")
    return worst
