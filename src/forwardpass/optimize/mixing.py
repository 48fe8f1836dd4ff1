"""The variant in mixed precision: nodes that gain in 8 bits, as the floor allows, and the whole held against float."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from forwardpass.core.measurement import Measurement
from forwardpass.core.variants import Format, Precision, Step, Variant
from forwardpass.errors import NothingGained
from forwardpass.optimize.calibration import CalibrationMethod
from forwardpass.optimize.candidates import FOLDED, MIXED, NUM_TRIAL_SAMPLES, SMOOTHED, completed, folded
from forwardpass.optimize.gains import (
    Neighbours,
    NodeGain,
    compare_files,
    contextual_saving,
    describe_node,
    find_links,
    gaining_nodes,
    weighted_nodes,
)
from forwardpass.optimize.knapsack import Item
from forwardpass.optimize.library import onnx
from forwardpass.optimize.mixed import MixedSearch, run_search
from forwardpass.optimize.naming import load_named, load_structure
from forwardpass.optimize.results import content_key
from forwardpass.optimize.sensitivity import node_errors
from forwardpass.optimize.terms import Terms
from forwardpass.optimize.values import LayerEvidence, SearchStep
from forwardpass.optimize.writers import QUANTISED_OPERATORS, StaticPlan, plan_static, quantisable_nodes, write_static

__all__ = ["MixedWork", "build_mixed", "layers_of"]

BYTES_SAVED = 0.75
"""Of float weights, in 8 bits."""
LEAST_GAINS = (1.0, 1.4)
"""Of nodes with float at both ends, for the sets that are timed as whole files."""


@dataclass(slots=True, kw_only=True, eq=False)
class MixedWork:
    """What is asked for, and the evidence that comes together on the way."""

    terms: Terms
    static_holds: bool
    """Whether the variant with all nodes in 8 bits keeps the floor."""
    gains: dict[str, NodeGain] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    in_8_bits: frozenset[str] = frozenset()
    steps: list[SearchStep] = field(default_factory=list)
    is_finished: bool = True

    @property
    def source(self) -> Path:
        """The float file that nodes are quantised of: the smoothed one where smoothing helps."""
        smoothed = self.terms.workshop.folder / SMOOTHED
        return smoothed if smoothed.is_file() else folded(self.terms.workshop)


def build_mixed(work: MixedWork) -> Variant | None:
    """Make the variant, or return None if it would be the one that has everything in 8 bits.

    Raises:
        NothingGained: no node gains, the whole is not faster than float, or all nodes would have to stay in float.
    """
    model = load_named(work.source)
    workshop = work.terms.workshop
    work.gains = dict(workshop.gains)
    links = find_links(model)
    plain, method = _plan(work)
    universe = _universe(work, links, plain)
    everything = frozenset(node.name for node in quantisable_nodes(model, QUANTISED_OPERATORS))
    if work.static_holds and universe == frozenset(plain.nodes) == everything:
        work.in_8_bits = universe
        return None
    plan = plain
    if not universe <= set(plain.nodes):
        plan = plan_static(work.source, workshop.calibration, nodes=universe, known=workshop.seen(work.source))
    trials = _Trials(work=work, plan=plan, method=method)
    if work.terms.is_for_speed:
        universe = _fastest(work, trials, universe)
    samples = workshop.calibration.head(NUM_TRIAL_SAMPLES)
    work.errors = node_errors(
        work.source,
        samples,
        replace(plan, nodes=tuple(sorted(universe))),
        method=method,
        reduce_range=workshop.reduce_range,
    )
    search = MixedSearch(items=_items(work, model, links, universe), settle=_settling(work, links))
    work.is_finished = run_search(search, trials.floor_holds, has_time=work.terms.has_time)
    if not search.best:
        trials.target.unlink(missing_ok=True)
        reason = "the limit holds only with every node in float"
        if not work.is_finished:
            reason = "no set of nodes in 8 bits was found to keep the limit before the time was over"
        raise NothingGained(reason=reason)
    work.in_8_bits = search.best
    trials.write(search.best)
    if work.terms.is_for_speed:
        _check_gain(work, trials.compare(search.best), len(search.best), trials.target)
    kept = tuple(node.name for node in weighted_nodes(model) if node.name not in search.best)
    return replace(trials.planned, recipe=workshop.baseline.recipe.then(_step(work, method, kept)))


def layers_of(work: MixedWork) -> tuple[LayerEvidence, ...]:
    """Return what is known of each node, in the order of the graph."""
    model = load_structure(work.source)
    return tuple(_layer(work, model, node) for node in weighted_nodes(model))


def _layer(work: MixedWork, model: onnx.ModelProto, node: onnx.NodeProto) -> LayerEvidence:
    gain = work.gains.get(node.name, NodeGain())
    return LayerEvidence(
        name=node.name,
        what=describe_node(model, node),
        error=work.errors.get(node.name),
        float_s=gain.float_s,
        gain=gain.static,
        gain_inside=gain.inside,
        gain_dynamic=gain.dynamic,
        is_in_8_bits=node.name in work.in_8_bits,
        reason=_layer_reason(work, node.name, gain),
    )


def _layer_reason(work: MixedWork, name: str, gain: NodeGain) -> str:
    if gain.failure:
        return f"cannot be measured in 8 bits: {gain.failure}"
    best = max((it.value for it in (gain.static, gain.inside) if it is not None), default=None)
    is_slower = best is not None and best <= 1
    if name in work.in_8_bits:
        if work.terms.is_for_speed and is_slower:
            return "slower in 8 bits on this machine, by too little to count for the whole"
        return f"{'gains' if work.terms.is_for_speed else 'smaller'} in 8 bits, and the floor holds"
    if is_slower:
        return "slower in 8 bits on this machine"
    if name in work.errors:
        return "stays in float for the floor"
    return "does not gain in the company that it would have"


def _plan(work: MixedWork) -> tuple[StaticPlan, CalibrationMethod]:
    known = work.terms.workshop.plans.get(work.source)
    if known is not None:
        return known
    plan = plan_static(work.source, work.terms.workshop.calibration, known=work.terms.workshop.seen(work.source))
    return plan, CalibrationMethod.MSE


def _universe(work: MixedWork, links: Mapping[str, Neighbours], plain: StaticPlan) -> frozenset[str]:
    """Return the nodes that may gain: for speed those that are faster, else all."""
    if not work.terms.is_for_speed:
        return frozenset(plain.nodes)
    found = completed(load_structure(work.source), gaining_nodes(work.gains, links, frozenset(work.gains)))
    if not found:
        best = max((gain.static.value for gain in work.gains.values() if gain.static), default=0.0)
        raise NothingGained(
            reason=f"none of {len(work.gains)} nodes is faster in 8 bits on this machine (the best is {best:.2f} times "
            "as fast as in float)"
        )
    return found


def _fastest(work: MixedWork, trials: _Trials, universe: frozenset[str]) -> frozenset[str]:
    """Return the set that is fastest as a whole file: all that may gain, or only what gains with float at both ends.

    In a whole model a convolution in float is faster than alone, since its neighbours keep its layout; how much, only
    the whole file shows.
    """
    model = load_named(work.source)
    alone = [completed(model, _gaining_alone(work, universe, least)) for least in LEAST_GAINS]
    measured = {}
    for names in dict.fromkeys((universe, *alone)):
        if names:
            measured[names] = trials.compare(names)
    best = max(measured, key=lambda names: measured[names].value)
    _check_gain(work, measured[best], len(best), trials.target)
    return best


def _gaining_alone(work: MixedWork, universe: frozenset[str], least: float) -> frozenset[str]:
    return frozenset(name for name in universe if (gain := work.gains[name].static) and gain.interval.low > least)


def _check_gain(work: MixedWork, gain: Measurement, num_nodes: int, target: Path) -> None:
    if gain.interval.low > 1:
        return
    target.unlink(missing_ok=True)
    raise NothingGained(
        reason=f"with {num_nodes} of {len(work.gains)} nodes in 8 bits the model is {gain.value:.2f} times as fast as "
        f"in float ({gain.interval.low:.2f} to {gain.interval.high:.2f}), which is not surely faster"
    )


def _items(
    work: MixedWork, model: onnx.ModelProto, links: Mapping[str, Neighbours], universe: frozenset[str]
) -> list[Item]:
    sizes = {tensor.name: BYTES_SAVED * 4 * _num_elements(tensor) for tensor in model.graph.initializer}
    items = []
    for node in weighted_nodes(model):
        if node.name not in universe:
            continue
        saved = sizes[node.input[1]]
        if work.terms.is_for_speed:
            saved = _saving(work, links, universe, node.name)
        items.append(Item(name=node.name, error=work.errors[node.name], saved=max(saved, 1e-12)))
    return items


def _num_elements(tensor: onnx.TensorProto) -> int:
    number = 1
    for size in tensor.dims:
        number *= size
    return number


def _saving(work: MixedWork, links: Mapping[str, Neighbours], universe: frozenset[str], name: str) -> float:
    return contextual_saving(work.gains[name], links.get(name, Neighbours()), universe)


def _settling(work: MixedWork, links: Mapping[str, Neighbours]) -> Callable[[frozenset[str]], frozenset[str]]:
    if not work.terms.is_for_speed:
        return lambda names: names
    model = load_named(work.source)
    return lambda names: completed(model, gaining_nodes(work.gains, links, names))


def _step(work: MixedWork, method: CalibrationMethod, kept: tuple[str, ...]) -> Step:
    return Step(
        operation="quantise-static",
        parameters=(
            ("smoothed", work.source.name != FOLDED),
            ("reduce_range", work.terms.workshop.reduce_range),
            ("calibration", method.value),
            ("num_nodes", len(work.in_8_bits)),
            ("kept_in_float", ", ".join(kept)),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Trials:
    """Writes sets of nodes as files, to be scored and timed."""

    work: MixedWork
    plan: StaticPlan
    method: CalibrationMethod

    @property
    def target(self) -> Path:
        return self.work.terms.workshop.folder / f"{MIXED}.onnx"

    @property
    def planned(self) -> Variant:
        return Variant(name=MIXED, format=Format.ONNX, precision=Precision.INT8_STATIC, location=str(self.target))

    def write(self, names: frozenset[str]) -> None:
        part = replace(self.plan, nodes=tuple(node for node in self.plan.nodes if node in names))
        write_static(
            self.work.source, self.target, part, method=self.method, reduce_range=self.work.terms.workshop.reduce_range
        )

    def floor_holds(self, names: frozenset[str]) -> bool:
        key = content_key("trial", self.work.terms.key, self.method, sorted(names))
        score = self.work.terms.store.find(key, float)
        if score is None:
            self.write(names)
            score = self.work.terms.score(self.planned)
            self.work.terms.store.keep(key, score)
        holds = self.work.terms.holds(score)
        self.work.steps.append(
            SearchStep(
                what=f"{len(names)} of {len(self.plan.nodes)} nodes in 8 bits",
                score=score,
                outcome="keeps the floor" if holds else "misses the floor",
            )
        )
        return holds

    def compare(self, names: frozenset[str]) -> Measurement:
        """Time a set of nodes in 8 bits against the baseline, and leave its file."""
        key = content_key("whole", self.work.terms.key, self.method, sorted(names))
        self.write(names)
        known = self.work.terms.store.find(key, Measurement)
        if known is None:
            known = self._time()
            self.work.terms.store.keep(key, known)
        self.work.steps.append(
            SearchStep(
                what=f"{len(names)} of {len(self.work.gains)} nodes in 8 bits, timed against float in one thread",
                outcome=f"{known.value:.2f} times as fast ({known.interval.low:.2f} to {known.interval.high:.2f})",
            )
        )
        return known

    def _time(self) -> Measurement:
        workshop = self.work.terms.workshop
        inputs = next(iter(workshop.calibration.batches(self.work.terms.num_rows))).inputs
        return compare_files(self.target, Path(workshop.baseline.location), inputs, workshop.timer)
