"""Which variants are made of a model, by which recipe, and what is not tried and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from forwardpass.core.samples import Samples
from forwardpass.core.tensors import Array
from forwardpass.core.variants import Format, Precision, Step, Variant
from forwardpass.errors import NothingGained, ParityFailed
from forwardpass.optimize.calibration import (
    CalibrationMethod,
    TensorHistogram,
    convergence,
    describe_convergence,
    distance_at_half,
)
from forwardpass.optimize.clocking import Timer
from forwardpass.optimize.exposing import Exposer
from forwardpass.optimize.gains import NodeGain, slower_dynamic, slower_static
from forwardpass.optimize.library import onnx
from forwardpass.optimize.naming import load_structure
from forwardpass.optimize.rescaling import static_forms
from forwardpass.optimize.side_by_side import map_calls
from forwardpass.optimize.smoothing import plan_smoothing, write_smoothed
from forwardpass.optimize.writers import (
    CHAIN_OPERATORS,
    MATRIX_OPERATORS,
    QUANTISED_OPERATORS,
    StaticPlan,
    plan_static,
    quantisable_nodes,
    whole_nodes,
    write_dynamic,
    write_fp16_storage,
    write_graph,
)
from forwardpass.predict import FLOAT_TOLERANCE, relative_error
from forwardpass.runtimes import RuntimeOptions

__all__ = [
    "FOLDED",
    "MIXED",
    "NUM_TRIAL_SAMPLES_OF_A_BRIEF_SEARCH",
    "SMOOTHED",
    "WHOLE",
    "Blueprint",
    "Workshop",
    "blueprints",
    "build",
    "completed",
    "folded",
    "not_slower",
]

FOLDED = "folded.onnx"
"""The baseline with constants folded: what quantisation starts from, removed when all variants are made."""

SMOOTHED = "smoothed.onnx"
"""The same, smoothed."""

MIXED = "int8-mixed"
"""The variant that keeps some nodes in float: those that are slower in 8 bits, and those that the floor needs."""

WHOLE = "int8-static-whole"
"""The variant that stays in 8 bits from convolution to convolution, through what adds, clips and pools between them."""

CALIBRATION = "calibration"
CALIBRATION_ERRORS = "errors_by_calibration"
RANGES_FROM_FINAL = "ranges_from_final_by_samples"
RANGES_AT_HALF = "ranges_from_final_at_half"
"""Parameters of a recipe: how the calibration has settled."""

FUSED_ACTIVATIONS = frozenset({"Relu", "LeakyRelu", "Sigmoid", "Tanh", "Softplus", "Softsign", "Elu", "Selu"})
"""What ONNX Runtime fuses into the product before it. With nothing quantised behind it, the product is fused in float
and its 8-bit weights are restored for every call: 0.2 times as fast as float. So what reads these stays in 8 bits."""

NUM_TRIAL_SAMPLES, NUM_TRIAL_SAMPLES_OF_A_BRIEF_SEARCH = 48, 24
"""Enough to tell calibration methods apart, whose errors differ by tens of percent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """What the writers work with."""

    baseline: Variant
    calibration: Samples
    folder: Path
    reduce_range: bool
    """Weights in 7 bits, because this processor's 8-bit multiplications saturate."""
    gains: Mapping[str, NodeGain] = field(default_factory=dict)
    """What each node gains in fewer bits on this machine; empty where time does not count."""
    plans: dict[Path, tuple[StaticPlan, CalibrationMethod]] = field(default_factory=dict)
    """The calibrations that were done, and the best method for each, by the float file that they belong to."""

    histograms: dict[Path, dict[str, TensorHistogram]] = field(default_factory=dict)
    """What was seen of tensors, by the float file that they belong to."""
    answers: dict[str, list[Array]] = field(default_factory=dict)
    """What the baseline answers for the samples that trials are compared on."""
    exposer: Exposer = field(default_factory=Exposer)
    """What looks inside of files."""
    num_trial_samples: int = NUM_TRIAL_SAMPLES
    """On which calibration methods are compared."""
    timer: Timer = field(default_factory=Timer)
    """What times files, for as long as the search lasts."""

    def seen(self, source: Path) -> dict[str, TensorHistogram]:
        """Return what is known of the tensors of a file; whoever looks at more adds it."""
        return self.histograms.setdefault(source, {})

    def tidy(self) -> None:
        """Remove the intermediate files, and end the timer."""
        self.exposer.clear()
        self.timer.stop()
        for intermediate in (FOLDED, SMOOTHED):
            (self.folder / intermediate).unlink(missing_ok=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """A variant that can be made."""

    name: str
    precision: Precision
    make: Callable[[Workshop, Path], Step]
    num_writes: float = 0.3
    """How often weights are quantised for it; a file that is only rewritten counts as a part of that."""
    num_calibrations: int = 0
    """How often the calibration samples are run for it."""


def blueprints() -> tuple[Blueprint, ...]:
    """Return all variants that are made, the simplest first."""
    dynamic, static = Precision.INT8_DYNAMIC, Precision.INT8_STATIC
    return (
        Blueprint(name="onnx-graph", precision=Precision.FP32, make=_make_graph),
        Blueprint(name="fp16-storage", precision=Precision.FP16_STORAGE, make=_make_fp16_storage),
        Blueprint(name="int8-dynamic", precision=dynamic, make=_make_dynamic, num_writes=1),
        Blueprint(name="int8-static", precision=static, make=_make_static, num_writes=3, num_calibrations=1),
        Blueprint(name=WHOLE, precision=static, make=_make_whole, num_writes=3, num_calibrations=1),
        Blueprint(
            name="int8-dynamic-smooth", precision=dynamic, make=_make_dynamic_smooth, num_writes=2, num_calibrations=1
        ),
        Blueprint(
            name="int8-static-smooth", precision=static, make=_make_static_smooth, num_writes=4, num_calibrations=2
        ),
    )


def build(blueprint: Blueprint, workshop: Workshop) -> Variant:
    """Make the variant's file and return it with its recipe."""
    target = workshop.folder / f"{blueprint.name}.onnx"
    step = blueprint.make(workshop, target)
    return Variant(
        name=blueprint.name,
        format=Format.ONNX,
        precision=blueprint.precision,
        location=str(target),
        recipe=workshop.baseline.recipe.then(step),
    )


def _make_graph(workshop: Workshop, target: Path) -> Step:
    write_graph(Path(workshop.baseline.location), target)
    return Step(operation="optimise-graph", parameters=(("level", "extended"),))


def _make_fp16_storage(workshop: Workshop, target: Path) -> Step:
    num_tensors = write_fp16_storage(Path(workshop.baseline.location), target)
    return Step(operation="store-fp16", parameters=(("num_tensors", num_tensors),))


def _make_dynamic(workshop: Workshop, target: Path) -> Step:
    return _dynamic(workshop, folded(workshop), target)


def _make_static(workshop: Workshop, target: Path) -> Step:
    return _static(workshop, folded(workshop), target)


def _make_whole(workshop: Workshop, target: Path) -> Step:
    source = folded(workshop)
    nodes = frozenset(node.name for node in whole_nodes(load_structure(source)))
    known = workshop.seen(source)
    plan = plan_static(
        source,
        workshop.calibration,
        nodes=nodes,
        operators=CHAIN_OPERATORS,
        known=known,
        exposer=workshop.exposer,
    )
    return _calibrated(workshop, source, target, plan)[1]


def _make_dynamic_smooth(workshop: Workshop, target: Path) -> Step:
    return _also_smooth(_dynamic(workshop, _smoothed(workshop), target))


def _make_static_smooth(workshop: Workshop, target: Path) -> Step:
    return _also_smooth(_static(workshop, _smoothed(workshop), target))


def _also_smooth(step: Step) -> Step:
    """Note that the step began with smoothing, whose own numbers follow from model, samples and weight range."""
    return replace(step, parameters=(("smoothed", True), *step.parameters))


def _dynamic(workshop: Workshop, source: Path, target: Path) -> Step:
    nodes = not_slower(source, MATRIX_OPERATORS, slower_dynamic(workshop.gains))
    write_dynamic(source, target, reduce_range=workshop.reduce_range, nodes=nodes)
    return Step(
        operation="quantise-dynamic",
        parameters=(
            ("weights", "s8 per channel"),
            ("reduce_range", workshop.reduce_range),
            ("num_nodes", len(nodes)),
        ),
    )


def not_slower(source: Path, operators: Sequence[str], slower: Set[str]) -> Set[str]:
    """Return the nodes that are quantised: those that are not surely slower so, or all, where all of them are.

    Where all are slower, the whole in 8 bits is still smaller, and a reader sees what that costs.
    """
    model = load_structure(source)
    nodes = {node.name: node for node in quantisable_nodes(model, operators)}
    activated = {output for node in model.graph.node if node.op_type in FUSED_ACTIVATIONS for output in node.output}
    dropped = {name for name in slower if name in nodes and nodes[name].input[0] not in activated}
    return nodes.keys() - dropped or nodes.keys()


def completed(model: onnx.ModelProto, names: frozenset[str]) -> frozenset[str]:
    """Add to nodes in 8 bits those that have to join them: readers of an activation that a product is fused with."""
    makers = {output: node for node in model.graph.node for output in node.output}

    def product_before(node: onnx.NodeProto) -> str:
        for kinds in (FUSED_ACTIVATIONS, {"Add"}):
            maker = makers.get(node.input[0])
            if maker is None or (maker.op_type not in kinds and kinds is FUSED_ACTIVATIONS):
                return ""
            node = maker if maker.op_type in kinds else node
        maker = makers.get(node.input[0])
        return maker.name if maker is not None and maker.op_type in MATRIX_OPERATORS else ""

    joined, constants = set(names), {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:  # in order, so that what joins draws what follows it
        is_product = node.op_type in MATRIX_OPERATORS and node.input[1] in constants
        if is_product and product_before(node) in joined:
            joined.add(node.name)
    return frozenset(joined)


def _static(workshop: Workshop, source: Path, target: Path) -> Step:
    nodes = not_slower(source, QUANTISED_OPERATORS, slower_static(workshop.gains))
    plan = plan_static(source, workshop.calibration, nodes=nodes, known=workshop.seen(source), exposer=workshop.exposer)
    best, step = _calibrated(workshop, source, target, plan)
    workshop.plans[source] = plan, best
    return step


def _calibrated(workshop: Workshop, source: Path, target: Path, plan: StaticPlan) -> tuple[CalibrationMethod, Step]:
    """Make the forms of every calibration method, and write the one whose answers are nearest to the baseline's."""
    best, kept = CalibrationMethod.MINMAX, b""
    errors: dict[CalibrationMethod, float] = {}
    for method, form in static_forms(source, list(CalibrationMethod), plan, reduce_range=workshop.reduce_range):
        errors[method] = float(np.mean(_errors(workshop, form)))
        if not kept or errors[method] < errors[best]:
            best, kept = method, form
    target.write_bytes(kept)
    points = convergence(list(plan.histograms.values()), best)
    step = Step(
        operation="quantise-static",
        parameters=(
            ("weights", "s8 per channel"),
            ("activations", "u8"),
            ("reduce_range", workshop.reduce_range),
            (CALIBRATION, best.value),
            (CALIBRATION_ERRORS, ", ".join(f"{method.value}: {errors[method]:.2%}" for method in errors)),
            ("num_calibration_samples", len(workshop.calibration)),
            (RANGES_FROM_FINAL, describe_convergence(points)),
            (RANGES_AT_HALF, round(distance_at_half(points), 4)),
            ("num_nodes", len(plan.nodes)),
        ),
    )
    return best, step


def _errors(workshop: Workshop, form: Path | bytes) -> list[float]:
    """Return how far the answers of a file, or its bytes, are from the baseline's, for some calibration samples."""
    samples, baseline = workshop.calibration.head(workshop.num_trial_samples), workshop.baseline.location
    if baseline not in workshop.answers:
        workshop.answers[baseline] = _answers(Path(baseline), samples)
    ours, theirs = _answers(form, samples), workshop.answers[baseline]
    return [relative_error(one, other) for one, other in zip(ours, theirs, strict=True)]


def _answers(form: Path | bytes, samples: Samples) -> list[Array]:
    from forwardpass.runtimes.onnx import OnnxRuntime

    options = RuntimeOptions()
    runtime = (
        OnnxRuntime.from_bytes(form, options=options)
        if isinstance(form, bytes)
        else OnnxRuntime(str(form), options=options)
    )
    return list(map_calls(lambda group: next(iter(runtime.run(group.inputs).values())), samples.batches(1)))


def folded(workshop: Workshop) -> Path:
    """Return the baseline with constants folded and shapes known, which the quantiser needs."""
    from forwardpass.runtimes.onnx import save_optimised

    path = workshop.folder / FOLDED
    if not path.is_file():
        save_optimised(Path(workshop.baseline.location), path, level="basic")
    return path


def _smoothed(workshop: Workshop) -> Path:
    """Return the folded baseline with uneven channels smoothed, after checking that it answers as before."""
    path = workshop.folder / SMOOTHED
    if path.is_file():
        return path
    source = folded(workshop)
    factors = plan_smoothing(source, workshop.calibration, reduce_range=workshop.reduce_range, exposer=workshop.exposer)
    if not factors:
        raise NothingGained(reason="no activation has channels so uneven that smoothing them makes 8 bits better")
    write_smoothed(source, path, factors)
    error = max(_errors(workshop, path))
    if not error <= FLOAT_TOLERANCE:
        path.unlink()
        raise ParityFailed(output="first", shape="the calibration samples", difference=error, tolerance=FLOAT_TOLERANCE)
    return path
