"""The variants in which some nodes stay as they are, chosen node by node: mixed precision, and weights alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from forwardpass.core.metrics import Metric
from forwardpass.core.protocols import Progress
from forwardpass.core.variants import Format, Precision, Variant
from forwardpass.optimize.brevity import needless_beside
from forwardpass.optimize.candidates import MIXED, WHOLE, Workshop, blueprints, build, folded
from forwardpass.optimize.entries import SHARE_OF_MAKING, SHARE_OF_SCORING, Entry, Search
from forwardpass.optimize.gains import describe_node
from forwardpass.optimize.making import MadeVariant, attempt, measure_nodes, recall, record
from forwardpass.optimize.mixing import MixedWork, build_mixed, layers_of
from forwardpass.optimize.naming import load_structure
from forwardpass.optimize.results import content_key, hash_file
from forwardpass.optimize.scoring import Scorer, score_one
from forwardpass.optimize.terms import Terms
from forwardpass.optimize.values import LayerEvidence
from forwardpass.optimize.weighting import WEIGHTS, WeightWork, build_weights, evidence_of
from forwardpass.optimize.weights import weight_nodes
from forwardpass.optimize.writers import nodes_in_8_bits

__all__ = ["make_int8_of", "make_mixed", "make_weights"]


def make_mixed(
    workshop: Workshop,
    search: Search,
    entries: Sequence[Entry],
    scorer: Scorer,
    metric: Metric,
    progress: Progress,
) -> list[Entry]:
    """Make the variant with some nodes in float, where that is faster or keeps a floor that is missed without."""
    made_static = [
        it
        for it in entries
        if it.validation
        and it.variant.format is Format.ONNX
        and it.variant.precision is Precision.INT8_STATIC
        and it.variant.name != WHOLE
    ]
    if not made_static:
        return []
    static = [it.validation.value for it in made_static if it.validation]
    reason = needless_beside(entries, MIXED, search, scorer)
    if reason:
        search.omit(MIXED, reason)
        work = _mixed_work(workshop, search, static, scorer, key="")
        search.layers = _layers_of_static(made_static[-1].variant, work)
        return []
    made = _mixed(workshop, search, static, scorer, progress)
    if made is None:
        return []
    search.layers = made.record.layers
    return _entered(made, search, scorer, MIXED)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Mixed:
    entry: Entry
    record: MadeVariant


def _mixed(
    workshop: Workshop,
    search: Search,
    static: Sequence[float],
    scorer: Scorer,
    progress: Progress,
    name: str = MIXED,
) -> _Mixed | None:
    """Make the mixed variant of the workshop's baseline; None without time, which is noted."""
    if not search.has_time():
        search.omit(name, str(search.budget))
        return None
    progress(f"making {name}", done=SHARE_OF_MAKING + SHARE_OF_SCORING)
    metric = scorer.metric
    key = content_key(
        "mixed", search.key, name, hash_file(workshop.baseline.location), metric.name, metric.higher_is_better,
        scorer.floor, search.settings.target, workshop.reduce_range, search.settings.profile.batch_sizes,
    )  # fmt: skip
    made = search.store.find(key, MadeVariant)
    entry = recall(made, workshop)
    if entry is None:
        work = _mixed_work(workshop, search, static, scorer, key=key)
        entry, made = _attempt_mixed(work)
        if work.is_finished:
            search.store.keep(key, made)
        else:
            search.left_out.append(f"the search for nodes of {name} to keep in float ended early: {search.budget}")
    assert made is not None, "an entry comes from a record or with one"
    return _Mixed(entry=entry, record=made)


def _mixed_work(workshop: Workshop, search: Search, static: Sequence[float], scorer: Scorer, *, key: str) -> MixedWork:
    return MixedWork(terms=_terms(workshop, search, scorer, key=key), static_holds=any(map(scorer.holds, static)))


def _terms(workshop: Workshop, search: Search, scorer: Scorer, *, key: str) -> Terms:
    return Terms(
        workshop=workshop,
        store=search.store,
        key=key,
        score=scorer.validate,
        holds=scorer.holds,
        is_for_speed=search.is_for_speed,
        num_rows=search.num_rows,
        has_time=search.has_time,
    )


def _layers_of_static(static: Variant, work: MixedWork) -> tuple[LayerEvidence, ...]:
    """Return what is known of each node where no mixed variant was made: in 8 bits is what the static one has so."""
    work.gains = dict(work.terms.workshop.gains)
    work.in_8_bits = nodes_in_8_bits(load_structure(Path(static.location)))
    return layers_of(work)


def _entered(made: _Mixed, search: Search, scorer: Scorer, name: str) -> list[Entry]:
    """Score a mixed variant and put it into the path of the search; none if it would have everything in 8 bits."""
    search.path += made.record.steps
    if made.record.is_needless:
        return []
    made.entry.variant = replace(made.entry.variant, name=name)
    score_one(made.entry, scorer, is_needed=False)
    search.note(made.entry, scorer.metric)
    return [made.entry]


def _attempt_mixed(work: MixedWork) -> tuple[Entry, MadeVariant]:
    found: list[Variant] = []

    def make() -> Variant:
        variant = build_mixed(work)
        found.extend([variant] if variant is not None else [])
        return variant or Variant(name=MIXED, format=Format.ONNX, precision=Precision.INT8_STATIC, location="")

    entry = attempt(MIXED, Precision.INT8_STATIC, work.terms.workshop, make)
    is_needless = not found and not entry.failure
    return entry, record(entry, layers=layers_of(work), steps=tuple(work.steps), is_needless=is_needless)


def make_weights(
    workshop: Workshop, search: Search, others: Sequence[Entry], scorer: Scorer, metric: Metric, progress: Progress
) -> list[Entry]:
    """Make the variants whose weights alone are rounded, that in 4 bits from what is known of that in 8."""
    key = content_key(
        "weights", search.key, metric.name, metric.higher_is_better, scorer.floor, search.settings.target,
        search.settings.profile.batch_sizes,
    )  # fmt: skip
    work = WeightWork(terms=_terms(workshop, search, scorer, key=key), gains=workshop.gains)
    entries = []
    for bits, (name, precision) in WEIGHTS.items():
        reason = needless_beside(others, name, search, scorer)
        if reason:
            search.omit(name, reason)
            continue
        if not search.has_time():
            search.omit(name, str(search.budget))
            continue
        progress(f"making {name}", done=SHARE_OF_MAKING + SHARE_OF_SCORING)
        entry = attempt(name, precision, workshop, partial(build_weights, work, bits))
        if not work.is_finished:
            search.left_out.append(f"the search for weights in {bits} bits ended early: {search.budget}")
        score_one(entry, scorer, is_needed=False)
        search.path += work.steps
        work.steps.clear()
        search.note(entry, metric)
        entries.append(entry)
    search.layers = _with_weights(search.layers, work)
    return entries


def _with_weights(layers: Sequence[LayerEvidence], work: WeightWork) -> tuple[LayerEvidence, ...]:
    """Add to what is known of the nodes what is known of their weights alone."""
    known = {layer.name: layer for layer in layers}
    model = load_structure(folded(work.terms.workshop))
    for node in weight_nodes(model):
        layer = known.get(node.name) or LayerEvidence(name=node.name, what=describe_node(model, node))
        known[node.name] = replace(layer, weights=evidence_of(work, node.name))
    return tuple(known.values())


def make_int8_of(
    variants: Sequence[Variant],
    workshop: Workshop,
    search: Search,
    scorer: Scorer,
    progress: Progress,
) -> list[Entry]:
    """Quantise networks that were made leaner before, whole and mixed: what they gain and what 8 bits gain add up."""
    entries = []
    for variant in variants:
        inner = replace(
            workshop, baseline=variant, folder=workshop.folder / variant.name, gains={}, plans={}, histograms={}
        )
        inner.folder.mkdir(exist_ok=True)
        try:
            entries += _int8_of(variant, measure_nodes(inner, search, progress), search, scorer, progress)
        finally:
            inner.tidy()
    return entries


def _int8_of(variant: Variant, inner: Workshop, search: Search, scorer: Scorer, progress: Progress) -> list[Entry]:
    blueprint = next(plan for plan in blueprints() if plan.precision is Precision.INT8_STATIC)
    name = f"{variant.name}-{blueprint.name}"
    if not search.has_time():
        search.omit(name, str(search.budget))
        return []
    progress(f"making {name}", done=SHARE_OF_MAKING + SHARE_OF_SCORING)
    entry = attempt(name, blueprint.precision, inner, partial(build, blueprint, inner))
    entry.variant = replace(entry.variant, name=name)
    score_one(entry, scorer, is_needed=False)
    search.note(entry, scorer.metric)
    if entry.validation is None:
        return [entry]
    mixed_name = f"{variant.name}-{MIXED}"
    made = _mixed(inner, search, [entry.validation.value], scorer, progress, mixed_name)
    return [entry, *(_entered(made, search, scorer, mixed_name) if made is not None else [])]
