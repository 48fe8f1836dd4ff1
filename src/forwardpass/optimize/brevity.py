"""What a brief search makes, and measures in full: what may be the fastest that keeps the floor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from forwardpass.core.statistics import measure_ratio
from forwardpass.core.tensors import Array
from forwardpass.core.variants import Format, Precision
from forwardpass.optimize.candidates import Workshop
from forwardpass.optimize.entries import Entry, Search
from forwardpass.optimize.gains import time_in_turns
from forwardpass.optimize.results import content_key, hash_file
from forwardpass.optimize.scoring import Scorer

__all__ = ["choose_finalists", "is_any_faster", "needless_beside"]

LEAST_GAIN = 1.1
"""At a glance, for a search to stay with what its forecast has it make."""
TIMES_AS_SLOW = 1.15
"""As the fastest at a glance; what is closer may be the fastest."""
SURELY_AS_SLOW = 1.02
"""As the fastest by the whole interval at a glance; what is no better otherwise could not be chosen."""


def needless_beside(entries: Iterable[Entry], name: str, search: Search, scorer: Scorer) -> str:
    """Return why a search does without a variant beside these; empty if it may win, or the search is not brief."""
    return search.forecast.needless(name, scorer.to_spare(entries)) if search.forecast is not None else ""


def is_any_faster(entries: Sequence[Entry], workshop: Workshop, scorer: Scorer, search: Search) -> bool:
    """Tell whether one of these files is, or was, seen to be faster than the float model at a glance.

    Those that keep the floor and are faster are noted as found.
    """
    unseen = [entry for entry in entries if entry.variant.name not in search.found_s]
    if unseen == list(entries):
        _glance(unseen, workshop, scorer, search)
    return any(entry.variant.name in search.found_s for entry in entries)


def choose_finalists(
    entries: Sequence[Entry], workshop: Workshop, scorer: Scorer, search: Search, *, needed: frozenset[str]
) -> list[Entry]:
    """Return the candidates that stay; of the others is noted why they were not measured.

    Without a forecast, everybody stays. So does what cannot be glanced at, since it is no ONNX file.
    """
    if search.forecast is None:
        return list(entries)
    free = [it for it in entries if not it.failure and it.variant.name not in needed]
    held = scorer.held(free)
    out = {it.variant.name: "it misses the floor" for it in free if it not in held}
    if len(held) > 1:
        out |= _too_slow(held, _glance(held, workshop, scorer, search), scorer)
    for name, reason in out.items():
        search.omit(name, reason, deed="measured")
    return [it for it in entries if it.variant.name not in out]


def _too_slow(entries: Sequence[Entry], shares: Mapping[str, Array], scorer: Scorer) -> dict[str, str]:
    """Return which of these cannot be chosen, and why: clearly slower, or surely slower and no better otherwise."""
    seen = {it.variant.name: it for it in entries if it.variant.name in shares}
    if not seen:
        return {}
    fastest = min(seen.values(), key=lambda it: float(np.median(shares[it.variant.name])))
    own, out = fastest.variant.name, {}
    for name, entry in seen.items():
        times = measure_ratio(shares[name], shares[own])
        if times.value > TIMES_AS_SLOW:
            out[name] = f"at a glance it takes {times.value:.1f} times as long as {own}"
        elif times.interval.low > SURELY_AS_SLOW and not _may_be_preferred(entry, fastest, scorer):
            span = f"({times.interval.low:.2f} to {times.interval.high:.2f})"
            out[name] = f"at a glance it takes {times.value:.2f} times as long {span} as {own}, whose score is as good"
    return out


def _may_be_preferred(entry: Entry, to: Entry, scorer: Scorer) -> bool:
    """Tell whether a choice between equally fast ones may fall on this: for its score, or since requests share batches.

    Among the quantised only dynamic scales make rows of a batch change each other.
    """
    assert entry.validation is not None, "it keeps the floor"
    assert to.validation is not None, "it keeps the floor"
    sign = 1.0 if scorer.metric.higher_is_better else -1.0
    is_better = sign * entry.validation.value > sign * to.validation.value
    return is_better or to.variant.precision is Precision.INT8_DYNAMIC


def _glance(entries: Sequence[Entry], workshop: Workshop, scorer: Scorer, search: Search) -> dict[str, Array]:
    """Time files beside the float model; return how many times as long they take, round by round, by name.

    Nothing is known of what is no ONNX file, or does not run.
    """
    entries = [entry for entry in entries if entry.variant.format is Format.ONNX]
    if not entries:
        return {}
    files = [variant.location for variant in (workshop.baseline, *(entry.variant for entry in entries))]
    key = content_key("glance-2", search.key, search.num_rows, [hash_file(file) for file in files])
    rounds = search.store.find(key, list[list[float]])
    if rounds is None:
        inputs = next(iter(scorer.splits.validation.batches(search.num_rows))).inputs
        try:
            rounds = time_in_turns([Path(file) for file in files], inputs, workshop.timer)
        except RuntimeError:
            return {}
        search.store.keep(key, rounds)
    float_s, *others_s = map(np.array, rounds)
    shares = {it.variant.name: call_s / float_s for it, call_s in zip(entries, others_s, strict=True)}
    for entry in scorer.held(entries):
        if LEAST_GAIN * float(np.median(shares[entry.variant.name])) < 1:
            search.note_found(entry.variant.name)
    return shares
