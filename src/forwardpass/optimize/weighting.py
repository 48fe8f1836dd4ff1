"""The variants whose weights alone are rounded: matrices in 8 bits, or in 4 and 8, as gains and the floor allow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from forwardpass.core.measurement import Measurement
from forwardpass.core.variants import Format, Precision, Step, Variant
from forwardpass.errors import NothingGained, NothingToQuantise
from forwardpass.optimize.candidates import NUM_TRIAL_SAMPLES, folded
from forwardpass.optimize.gains import NodeGain, compare_files
from forwardpass.optimize.knapsack import Item
from forwardpass.optimize.library import onnx
from forwardpass.optimize.mixed import MixedSearch, run_search
from forwardpass.optimize.naming import load_named
from forwardpass.optimize.results import content_key
from forwardpass.optimize.terms import Terms
from forwardpass.optimize.values import SearchStep, WeightEvidence
from forwardpass.optimize.weights import (
    FORMS,
    BlockStore,
    WeightForm,
    saved_bytes,
    weight_errors,
    weight_nodes,
    write_weights,
)
from forwardpass.optimize.writers import MATRIX_OPERATORS

__all__ = ["WEIGHTS", "WeightWork", "build_weights", "evidence_of"]

WEIGHTS = {8: ("int8-weights", Precision.INT8_WEIGHTS), 4: ("int4-weights", Precision.INT4_WEIGHTS)}
"""The name and the precision of the variants, by bits, in the order in which they are made."""

Forms = Mapping[str, WeightForm]


@dataclass(slots=True, kw_only=True, eq=False)
class WeightWork:
    """What is asked for, and the evidence that comes together on the way, of both variants."""

    terms: Terms
    gains: Mapping[str, NodeGain]
    """What each node gains, where time counts."""
    blocks: BlockStore = field(default_factory=BlockStore)
    kept: dict[int, Forms] = field(default_factory=dict)
    """The nodes that the finished variants have in blocks, by the variant's bits."""
    errors: dict[str, dict[WeightForm, float]] = field(default_factory=dict)
    steps: list[SearchStep] = field(default_factory=list)
    is_finished: bool = True


def build_weights(work: WeightWork, bits: int) -> Variant:
    """Make a variant; that in 4 bits leaves a node in 8, as the variant in 8 bits has it, where that is better.

    Raises:
        NothingToQuantise: no matrix product has a constant matrix.
        NothingGained: no node gains, the whole is not faster than float, or the floor allows none.
    """
    source = folded(work.terms.workshop)
    model = load_named(source)
    nodes = weight_nodes(model)
    if not nodes:
        raise NothingToQuantise(operators=MATRIX_OPERATORS)
    base = work.kept.get(8, {}) if bits == 4 else {}
    trials = _Trials(work=work, source=source, bits=bits)
    for form in FORMS[bits]:
        saved = _savings(work, model, nodes, form, base)
        forms: Forms = {**base, **dict.fromkeys(saved, form)}
        _note_errors(work, source, dict.fromkeys(saved, form))
        if trials.floor_holds(forms) or not work.terms.has_time():
            break
    if not trials.floor_holds(forms):
        forms = _fewer(work, trials, base, saved, form)
    trials.write(forms)
    if work.terms.is_for_speed:
        _check_gain(trials, forms, len(nodes))
    work.kept[bits] = forms
    return trials.planned(_step(nodes, forms))


def evidence_of(work: WeightWork, name: str) -> tuple[WeightEvidence, ...]:
    """Return what is known of a node in every form."""
    gain = work.gains.get(name, NodeGain())
    return tuple(
        WeightEvidence(
            form=str(form),
            error=work.errors.get(name, {}).get(form),
            gain=gain.blocks.get(str(form)),
            is_used=work.kept.get(bits, {}).get(name) == form,
        )
        for bits, forms in FORMS.items()
        for form in forms
        if form in work.errors.get(name, {}) or str(form) in gain.blocks
    )


def _savings(
    work: WeightWork, model: onnx.ModelProto, nodes: list[onnx.NodeProto], form: WeightForm, base: Forms
) -> dict[str, float]:
    """Return what every node that gains saves in a form, in seconds or bytes, against how it is without.

    Raises:
        NothingGained: none gains.
    """
    saved = {}
    for node in nodes:
        if work.terms.is_for_speed:
            before = _saved_s(work.gains.get(node.name), base.get(node.name))
            saved[node.name] = _saved_s(work.gains.get(node.name), form) - before
        else:
            before = saved_bytes(model, node, base[node.name]) if node.name in base else 0
            saved[node.name] = saved_bytes(model, node, form) - before
    found = {name: amount for name, amount in saved.items() if amount > 0}
    if not found:
        raise NothingGained(reason=_no_gain(work, form, len(nodes), is_above_8_bits=bool(base)))
    return found


def _saved_s(gain: NodeGain | None, form: WeightForm | None) -> float:
    """Return the seconds that a node surely saves in a form; 0 where it is not surely faster than in float."""
    measured = gain.blocks.get(str(form)) if gain is not None and form is not None else None
    if gain is None or gain.float_s is None or measured is None or measured.interval.low <= 1:
        return 0.0
    return gain.float_s.value * (1 - 1 / measured.value)


def _matrices(number: int) -> str:
    return "1 matrix" if number == 1 else f"{number} matrices"


def _no_gain(work: WeightWork, form: WeightForm, num_nodes: int, *, is_above_8_bits: bool) -> str:
    if not work.terms.is_for_speed:
        return f"none of {_matrices(num_nodes)} is smaller in {form}"
    found = [gain.blocks[str(form)] for gain in work.gains.values() if str(form) in gain.blocks]
    than = "in 8 bits" if is_above_8_bits else "in float"
    best = " (none was measured)"
    if found:
        gain = max(found, key=lambda gain: gain.interval.low)
        span = f"{gain.interval.low:.2f} to {gain.interval.high:.2f}"
        best = f" (the best is {gain.value:.2f} times as fast as in float, {span})"
    return f"none of {_matrices(num_nodes)} is surely faster with weights in {form} than {than} on this machine{best}"


def _note_errors(work: WeightWork, source: Path, forms: Forms) -> None:
    """Measure the errors of the nodes in these forms; they come from the same files, so a later search knows them."""
    key = content_key("weight-errors", work.terms.key, {name: str(form) for name, form in forms.items()})
    found = work.terms.store.find(key, dict[str, float])
    if found is None:
        if not work.terms.has_time():
            return
        samples = work.terms.workshop.calibration.head(NUM_TRIAL_SAMPLES)
        found = weight_errors(source, samples, forms, store=work.blocks)
        work.terms.store.keep(key, found)
    for name, error in found.items():
        work.errors.setdefault(name, {})[forms[name]] = error


def _fewer(work: WeightWork, trials: _Trials, base: Forms, saved: Mapping[str, float], form: WeightForm) -> Forms:
    """Find the most valuable nodes with which the floor holds."""
    errors = {name: work.errors.get(name, {}).get(form, 0.0) for name in saved}
    items = [Item(name=name, error=errors[name], saved=amount) for name, amount in saved.items()]
    search = MixedSearch(items=items)

    def forms_of(names: frozenset[str]) -> Forms:
        return {**base, **dict.fromkeys(sorted(names), form)}

    work.is_finished = run_search(
        search, lambda names: trials.floor_holds(forms_of(names)), has_time=work.terms.has_time
    )
    if search.best:
        return forms_of(search.best)
    trials.target.unlink(missing_ok=True)
    if not work.is_finished:
        raise NothingGained(reason=f"no set of matrices in {form} was found to keep the limit before the time was over")
    rest = "in 8 bits or in float" if base else "in float"
    raise NothingGained(reason=f"the limit holds only with every matrix {rest}")


def _check_gain(trials: _Trials, forms: Forms, num_nodes: int) -> None:
    gain = trials.compare(forms)
    if gain.interval.low > 1:
        return
    trials.target.unlink(missing_ok=True)
    raise NothingGained(
        reason=f"with {len(forms)} of {_matrices(num_nodes)} in blocks the model is {gain.value:.2f} times as fast as "
        f"in float ({gain.interval.low:.2f} to {gain.interval.high:.2f}), which is not surely faster"
    )


def _step(nodes: list[onnx.NodeProto], forms: Forms) -> Step:
    counts: dict[WeightForm, int] = {}
    for form in forms.values():
        counts[form] = counts.get(form, 0) + 1
    return Step(
        operation="round-weights",
        parameters=(
            *((str(form), _matrices(count)) for form, count in sorted(counts.items(), key=str)),
            ("in_float", ", ".join(node.name for node in nodes if node.name not in forms)),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Trials:
    """Writes sets of nodes as files, to be scored and timed."""

    work: WeightWork
    source: Path
    bits: int
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def target(self) -> Path:
        return self.work.terms.workshop.folder / f"{WEIGHTS[self.bits][0]}.onnx"

    def planned(self, step: Step | None = None) -> Variant:
        name, precision = WEIGHTS[self.bits]
        recipe = self.work.terms.workshop.baseline.recipe
        return Variant(
            name=name,
            format=Format.ONNX,
            precision=precision,
            location=str(self.target),
            recipe=recipe.then(step) if step is not None else recipe,
        )

    def write(self, forms: Forms) -> None:
        write_weights(self.source, self.target, forms, store=self.work.blocks)

    def floor_holds(self, forms: Forms) -> bool:
        key = content_key("weights", self.work.terms.key, {name: str(form) for name, form in forms.items()})
        score = self.scores.get(key)
        if score is None:
            score = self.work.terms.store.find(key, float)
            if score is None:
                self.write(forms)
                score = self.work.terms.score(self.planned())
                self.work.terms.store.keep(key, score)
            self.scores[key] = score
            self.work.steps.append(
                SearchStep(
                    what=f"{self._words(forms)}, activations in float",
                    score=score,
                    outcome="keeps the floor" if self.work.terms.holds(score) else "misses the floor",
                )
            )
        return self.work.terms.holds(score)

    def compare(self, forms: Forms) -> Measurement:
        """Time the file as it is against the baseline."""
        key = content_key("whole-weights", self.work.terms.key, {name: str(form) for name, form in forms.items()})
        known = self.work.terms.store.find(key, Measurement)
        if known is None:
            workshop = self.work.terms.workshop
            inputs = next(iter(workshop.calibration.batches(self.work.terms.num_rows))).inputs
            known = compare_files(self.target, Path(workshop.baseline.location), inputs, workshop.timer)
            self.work.terms.store.keep(key, known)
        self.work.steps.append(
            SearchStep(
                what=f"{self._words(forms)}, timed against float in one thread",
                outcome=f"{known.value:.2f} times as fast ({known.interval.low:.2f} to {known.interval.high:.2f})",
            )
        )
        return known

    def _words(self, forms: Forms) -> str:
        kinds = sorted(set(map(str, forms.values())))
        counts = [f"{_matrices(sum(str(form) == kind for form in forms.values()))} in {kind}" for kind in kinds]
        return " and ".join(counts)
