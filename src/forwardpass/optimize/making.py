"""Making the candidates, each once: what was made before by the same recipe from the same model is taken as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from forwardpass.core.metrics import Metric
from forwardpass.core.protocols import Progress
from forwardpass.core.variants import Format, Precision, Variant
from forwardpass.errors import ForwardpassError, MissingExtra, NothingGained, NothingToQuantise, StorageFailed
from forwardpass.optimize.brevity import is_any_faster, needless_beside
from forwardpass.optimize.candidates import WHOLE, Blueprint, Workshop, blueprints, build, folded
from forwardpass.optimize.entries import SHARE_OF_MAKING, SHARE_OF_SCORING, Entry, Search, as_sentence
from forwardpass.optimize.gains import measure_gains, slower_dynamic, slower_static
from forwardpass.optimize.results import content_key, hash_file
from forwardpass.optimize.sampling import RUNS_OF_CALIBRATION
from forwardpass.optimize.scoring import Scorer, score_one
from forwardpass.optimize.values import LayerEvidence, SearchStep

__all__ = [
    "MadeVariant",
    "attempt",
    "keep_apt",
    "make_all",
    "make_first",
    "measure_nodes",
    "recall",
    "record",
]

SHARE_OF_REST_FOR_GAINS = 0.15
"""Of what is left of a budget, for measuring single nodes."""
LEAST_VARIANTS = 2
"""Beside the float model, as many are made as long as they can be measured, however slow the model."""
MOST_PROMISING = (WHOLE, "int8-static", "int8-dynamic", "int8-static-smooth", "int8-dynamic-smooth")
"""What is made first where there is no time for everything; without convolutions the first is told from the graph."""


FIRST_WITH_CONVOLUTIONS, FIRST_WITHOUT_CONVOLUTIONS = "int8-static", "int8-static-smooth"
"""What is made before nodes are measured, beside the variant that stays in 8 bits from convolution to convolution."""


class MadeVariant(msgspec.Struct, frozen=True, kw_only=True):
    """A variant that was made, or why there is none, and the file as it was then."""

    variant: Variant
    failure: str = ""
    is_rejected: bool = False
    sha256: str = ""
    layers: tuple[LayerEvidence, ...] = ()
    steps: tuple[SearchStep, ...] = ()
    is_needless: bool = False


def make_all(
    workshop: Workshop,
    search: Search,
    scorer: Scorer,
    metric: Metric,
    needed: frozenset[str],
    progress: Progress,
    first: Sequence[Entry] = (),
) -> list[Entry]:
    """Make and score every variant that has a recipe of its own, as many as there is time for, beside the `first`.

    A brief search makes what promises most, and the rest only if that is not faster than the float model after all.
    """
    plans = blueprints()
    is_by_promise = search.budget.total_s is not None or search.forecast is not None
    found = {entry.variant.name: entry for entry in first}
    needless: dict[str, str] = {}

    def make(wanted: Sequence[Blueprint]) -> None:
        for blueprint in wanted:
            if blueprint.name in found:
                continue
            reason = needless_beside(found.values(), blueprint.name, search, scorer)
            if reason:
                needless[blueprint.name] = reason
                continue
            progress(f"making {blueprint.name}", done=(SHARE_OF_MAKING + SHARE_OF_SCORING) * len(found) / len(plans))
            entry = _make_one(blueprint, workshop, search, scorer, needed)
            if entry is not None:
                found[blueprint.name] = entry
                search.note(entry, metric)
                _look(entry, workshop, search, scorer)

    make(sorted(plans, key=partial(_promise, search)) if is_by_promise else plans)
    if needless and not is_any_faster(scorer.held(found.values()), workshop, scorer, search):
        search.forecast = None
        make([blueprint for blueprint in plans if blueprint.name in needless])
    else:
        for name, reason in needless.items():
            search.omit(name, reason)
    return [found[blueprint.name] for blueprint in plans if blueprint.name in found]


def _make_one(
    blueprint: Blueprint, workshop: Workshop, search: Search, scorer: Scorer, needed: frozenset[str]
) -> Entry | None:
    """Make and score a variant, or take it from memory; None without time, which is noted."""
    making_s = search.pace.making_s(
        num_writes=blueprint.num_writes,
        num_calls=blueprint.num_calibrations * RUNS_OF_CALIBRATION * len(workshop.calibration),
    )
    if not search.has_time(making_s, least=len(needed) + LEAST_VARIANTS):
        search.omit(blueprint.name, str(search.budget))
        return None
    slower = [sorted(slower_static(workshop.gains)), sorted(slower_dynamic(workshop.gains))]
    key = content_key("variant", search.key, blueprint.name, workshop.reduce_range, slower)
    entry = recall(search.store.find(key, MadeVariant), workshop)
    if entry is None:
        with search.learning(making_s):
            entry = attempt(blueprint.name, blueprint.precision, workshop, partial(build, blueprint, workshop))
        search.store.keep(key, record(entry))
    score_one(entry, scorer, is_needed=False)
    return entry


def make_first(
    workshop: Workshop, search: Search, scorer: Scorer, metric: Metric, needed: frozenset[str], progress: Progress
) -> list[Entry]:
    """Make what wins most often, in a brief search, before nodes are measured, and glance at it.

    So something is found early, and what is measured of nodes decides only what else is made.
    """
    if not search.is_brief:
        return []
    plans = {blueprint.name: blueprint for blueprint in blueprints()}

    def make(name: str) -> Entry | None:
        progress(f"making {name}", done=0.0)
        entry = _make_one(plans[name], workshop, search, scorer, needed)
        if entry is not None:
            search.note(entry, metric)
            is_any_faster(scorer.held([entry]), workshop, scorer, search)
        return entry

    whole = make(WHOLE)
    if whole is None:
        return []
    other = make(FIRST_WITHOUT_CONVOLUTIONS if whole.is_rejected else FIRST_WITH_CONVOLUTIONS)
    return [whole] if other is None else [whole, other]


def keep_apt(entries: Sequence[Entry], search: Search) -> list[Entry]:
    """Return which of those that were made before nodes were measured need not be made again.

    The others would be faster with some node in float; what was found of them is forgotten.
    """
    if search.forecast is None or not search.forecast.favours_float_nodes:
        return list(entries)
    for entry in entries:
        if entry.variant.name != WHOLE:
            search.found_s.pop(entry.variant.name, None)
    return [entry for entry in entries if entry.variant.name == WHOLE]


def _look(entry: Entry, workshop: Workshop, search: Search, scorer: Scorer) -> None:
    """Glance at a variant that was just made, in a brief search that has found nothing yet."""
    if search.is_brief and not search.found_s:
        is_any_faster(scorer.held([entry]), workshop, scorer, search)


def _promise(search: Search, blueprint: Blueprint) -> int:
    order = search.forecast.order(MOST_PROMISING) if search.forecast is not None else MOST_PROMISING
    return order.index(blueprint.name) if blueprint.name in order else len(order)


def record(entry: Entry, **evidence: Any) -> MadeVariant:
    """Return what is remembered of a candidate that was just made."""
    sha256 = "" if entry.failure or not entry.variant.location else hash_file(entry.variant.location)
    return MadeVariant(
        variant=entry.variant, failure=entry.failure, is_rejected=entry.is_rejected, sha256=sha256, **evidence
    )


def recall(made: MadeVariant | None, workshop: Workshop) -> Entry | None:
    """Return a candidate that was made before, if its file is still what it was then; a failure is tried again."""
    if made is None or (made.failure and not made.is_rejected):
        return None
    if made.failure or made.is_needless:
        return Entry(variant=made.variant, failure=made.failure, is_rejected=made.is_rejected)
    file = workshop.folder / Path(made.variant.location).name
    if not file.is_file() or hash_file(str(file)) != made.sha256:
        return None
    return Entry(variant=replace(made.variant, location=str(file)))


def measure_nodes(workshop: Workshop, search: Search, progress: Progress) -> Workshop:
    """Measure what fewer bits gain in every node, if time is what counts, and give it to the writers."""
    gains_s = SHARE_OF_REST_FOR_GAINS * search.budget.left_s if search.budget.total_s is not None else 0.0
    first_s = search.pace.making_s(num_writes=1, num_calls=0)
    if not search.is_for_speed or not search.has_time(first_s + gains_s, least=search.num_to_measure + 1):
        return workshop  # a whole variant says more than the gains of its nodes
    progress("measuring nodes in fewer bits", done=0.0)
    enough_s = search.budget.left_s - gains_s
    gains = measure_gains(
        folded(workshop),
        workshop.calibration,
        store=search.store,
        reduce_range=workshop.reduce_range,
        num_rows=search.num_rows,
        has_time=lambda: search.budget.left_s >= enough_s,
        is_brief=search.is_brief,
        timer=workshop.timer,
        exposer=workshop.exposer,
    )
    return replace(workshop, gains=gains)


def attempt(
    name: str,
    precision: Precision,
    workshop: Workshop,
    make: Callable[[], Variant],
    *,
    format: Format = Format.ONNX,  # noqa: A002
) -> Entry:
    """Make a variant; what goes wrong ends this variant and not the search."""
    planned = Variant(name=name, format=format, precision=precision, location="")
    try:
        return Entry(variant=make())
    except MissingExtra:
        raise
    except (NothingToQuantise, NothingGained) as error:
        return Entry(variant=planned, failure=str(error), is_rejected=True)
    except ForwardpassError as error:
        return Entry(variant=planned, failure=str(error))
    except OSError as error:
        raise StorageFailed(path=str(workshop.folder), reason=error.strerror or str(error)) from error
    except Exception as error:  # the writers are other people's code
        return Entry(variant=planned, failure=as_sentence(error))
