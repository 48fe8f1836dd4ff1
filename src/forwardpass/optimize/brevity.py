"""What a brief search makes, and measures in full: what may be the fastest that keeps the floor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from forwardpass.core.variants import Format, Variant
from forwardpass.optimize.entries import Entry, Search
from forwardpass.optimize.gains import glance_at_files
from forwardpass.optimize.results import content_key, hash_file
from forwardpass.optimize.scoring import Scorer

__all__ = ["choose_finalists", "is_any_faster", "needless_beside"]

LEAST_GAIN = 1.1
"""At a glance, for a search to stay with what its forecast has it make."""
TIMES_AS_SLOW = 1.15
"""As the fastest at a glance; what is closer may be the fastest."""


def needless_beside(entries: Iterable[Entry], name: str, search: Search, scorer: Scorer) -> str:
    """Return why a search does without a variant beside these; empty if it may win, or the search is not brief."""
    return search.forecast.needless(name, scorer.to_spare(entries)) if search.forecast is not None else ""


def is_any_faster(entries: Sequence[Entry], baseline: Variant, scorer: Scorer, search: Search) -> bool:
    """Tell whether one of these files is faster than the float model at a glance."""
    _glance(entries, baseline, scorer, search)
    return any(LEAST_GAIN * search.glances.get(entry.variant.name, 1.0) < 1 for entry in entries)


def choose_finalists(
    entries: Sequence[Entry], baseline: Variant, scorer: Scorer, search: Search, *, needed: frozenset[str]
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
        _glance(held, baseline, scorer, search)
        known = {it.variant.name: search.glances[it.variant.name] for it in held if it.variant.name in search.glances}
        fastest = min(known, key=lambda name: known[name], default="")
        for name, share in known.items():
            if share > TIMES_AS_SLOW * known[fastest]:
                out[name] = f"at a glance it takes {share / known[fastest]:.1f} times as long as {fastest}"
    for name, reason in out.items():
        search.omit(name, reason, deed="measured")
    return [it for it in entries if it.variant.name not in out]


def _glance(entries: Sequence[Entry], baseline: Variant, scorer: Scorer, search: Search) -> None:
    """Time the files that were not timed so far, beside the float model; nothing is known of what does not run."""
    new = [it for it in entries if it.variant.format is Format.ONNX and it.variant.name not in search.glances]
    if not new:
        return
    files = [variant.location for variant in (baseline, *(entry.variant for entry in new))]
    key = content_key("glance", search.key, search.num_rows, [hash_file(file) for file in files])
    seconds = search.store.find(key, list[float])
    if seconds is None:
        inputs = next(iter(scorer.splits.validation.batches(search.num_rows))).inputs
        try:
            seconds = glance_at_files([Path(file) for file in files], inputs)
        except RuntimeError:
            return
        search.store.keep(key, seconds)
    float_s, *others_s = seconds
    search.glances |= {it.variant.name: call_s / float_s for it, call_s in zip(new, others_s, strict=True)}
