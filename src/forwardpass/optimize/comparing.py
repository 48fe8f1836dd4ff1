"""Measuring the candidates side by side, in turns, as far as the time goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from forwardpass.core.calls import calls_from_samples
from forwardpass.core.protocols import Progress
from forwardpass.core.samples import Samples
from forwardpass.core.variants import Format, Variant
from forwardpass.errors import ChildFailed
from forwardpass.optimize.budget import fit_profile
from forwardpass.optimize.entries import SHARE_OF_MAKING, SHARE_OF_SCORING, Entry, Search
from forwardpass.optimize.gains import glance_at_files
from forwardpass.optimize.results import content_key, hash_files
from forwardpass.optimize.values import Target
from forwardpass.profile import VariantProfile, profile_variants
from forwardpass.profile.session import purpose_of
from forwardpass.runtimes import companions

__all__ = ["profile_all"]

TIMES_AS_MANY_STARTS = 2
"""Where cold starts decide, there are twice as many of them."""
STARTS_OF_A_BRIEF_SEARCH = 2
"""Where they decide nothing; the first is that of the process which also measures calls."""
CALLS_OF_A_GLANCE = 7
"""Of a slow model: one to get warm, one to see how slow it is, and one in each round."""
SHARE_OF_A_GLANCE = 0.1
"""Of the time that is left; a glance that would take more is not worth it."""


def profile_all(
    entries: Sequence[Entry],
    samples: Samples,
    search: Search,
    progress: Progress,
    *,
    needed: frozenset[str],
) -> list[Entry]:
    """Measure all candidates side by side, as many as there is time for, and return those that stay in the search.

    One whose process dies is out. The others are then measured anew: rounds are compared in pairs, and what was
    measured before the death has no partners behind it.
    """
    start = SHARE_OF_MAKING + SHARE_OF_SCORING

    def show(text: str, *, done: float) -> None:
        progress(text, done=start + (1 - start) * done)

    running = [entry for entry in entries if not entry.failure]
    wanted = search.settings.profile
    if search.settings.target is Target.COLD_START:
        wanted = replace(wanted, num_cold_starts=TIMES_AS_MANY_STARTS * wanted.num_cold_starts)
    elif search.settings.is_brief:
        decides = search.settings.target is not Target.THROUGHPUT and search.settings.target is not Target.COST
        wanted = wanted.in_fewer_processes(STARTS_OF_A_BRIEF_SEARCH, one_row_decides=decides)
    settings, num_measured = fit_profile(wanted, len(running), search.budget.left_s, search.pace)
    num_left_out = max(len(running) - num_measured, 0)
    for entry in _least_promising(running, needed, search, samples)[:num_left_out] if num_left_out else ():
        search.omit(entry.variant.name, str(search.budget), deed="measured")
        running.remove(entry)
    dropped = [entry for entry in entries if not entry.failure and entry not in running]
    if settings != wanted:
        search.left_out.append(f"measurements were shortened: {search.budget}")
    calls = calls_from_samples(samples, settings.batch_sizes)
    while any(entry.profile is None for entry in running):
        variants = [entry.variant for entry in running]
        key = content_key("profiles", search.key, settings, [_identity(variant) for variant in variants])
        profiles = search.store.find(key, tuple[VariantProfile, ...])
        try:
            if profiles is None:
                profiles = profile_variants(
                    variants, calls, settings=settings, progress=show, has_time=lambda: search.budget.left_s > 0
                )
                search.store.keep(key, profiles)
        except ChildFailed as error:
            lost = next((entry for entry in running if purpose_of(entry.variant) == error.purpose), None)
            if lost is None or lost.variant.name in needed:
                raise
            lost.failure = str(error)
            running.remove(lost)
        else:
            for entry, profile in zip(running, profiles, strict=True):
                entry.profile = profile
    return [entry for entry in entries if entry not in dropped]


def _identity(variant: Variant) -> tuple[str, str]:
    file = Path(variant.location)
    if not file.is_file():
        return variant.name, variant.location
    return variant.name, hash_files([file, *companions(variant.format, file)])


def _least_promising(entries: Sequence[Entry], needed: frozenset[str], search: Search, samples: Samples) -> list[Entry]:
    """Return what may be left unmeasured: for speed, what is slowest at a glance goes first.

    Otherwise, and where a glance fails or would take too long, it is what is farthest from the source's answers.
    """
    free = [entry for entry in entries if entry.variant.name not in needed]
    distant = sorted(free, key=lambda entry: -(entry.error.value if entry.error is not None else 0.0))
    files = [entry for entry in distant if entry.variant.format is Format.ONNX]
    glance_s = len(files) * (search.pace.load_s + CALLS_OF_A_GLANCE * search.num_rows * search.pace.call_s)
    if not search.is_for_speed or not files or glance_s > SHARE_OF_A_GLANCE * search.budget.left_s:
        return distant
    inputs = next(iter(samples.batches(search.num_rows))).inputs
    try:
        seconds = glance_at_files([Path(entry.variant.location) for entry in files], inputs)
    except RuntimeError:
        return distant
    slowest = [entry for _, entry in sorted(zip(seconds, files, strict=True), key=lambda pair: -pair[0])]
    return [*(entry for entry in distant if entry not in files), *slowest]
