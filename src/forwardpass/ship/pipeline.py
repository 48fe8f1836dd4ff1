"""The checklist from top to bottom: samples, convert, make leaner, optimise, bundle, verify."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import msgspec

from forwardpass.bundle import Bundle
from forwardpass.convert import Conversion, PlainModel, TorchSource, convert_to_onnx
from forwardpass.core.checklist import CheckLine, is_ready
from forwardpass.core.metrics import Metric
from forwardpass.core.protocols import Progress
from forwardpass.core.samples import SampleSplits, fingerprint_samples
from forwardpass.core.variants import Format, Precision, Variant
from forwardpass.core.version import VERSION
from forwardpass.lean import LeanSettings
from forwardpass.lean.making import check_lean, lean_variants, load_lessons
from forwardpass.optimize import Optimization, OptimizeSettings, Provenance, optimize_model
from forwardpass.optimize.provenance import provenance_of
from forwardpass.predict import GoldenCheck, verify_variant
from forwardpass.profile import describe_machine
from forwardpass.runtimes import runtime_versions
from forwardpass.ship.assembly import assemble_bundle
from forwardpass.ship.auditing import FullAudits, audit_travellers, with_full_audits
from forwardpass.ship.lines import checklist
from forwardpass.ship.store import StepStore, hash_file, step_key

__all__ = ["ShipRequest", "Shipment", "ship"]

Document = TypeVar("Document")

CONVERT, LEAN, OPTIMIZE, AUDIT = "convert", "lean", "optimize", "audit"
MEMORY, TRAINING = "search", "training"
"""Folders beside those of the steps: what a search has measured and a training has learned outlives an interruption."""
SHARE_OF_CONVERSION, SHARE_OF_TRAINING, SHARE_OF_AUDIT = 0.1, 0.4, 0.1
SHARE_OF_ALL_BUT_PACKING = 0.95
"""Of the time of a typical run, for the progress bar."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShipRequest:
    """Everything that decides what comes out."""

    source: TorchSource | Path
    source_key: str
    """A hash of the source's code and weights: what makes it the same source."""
    splits: SampleSplits
    name: str
    out: Path
    metric: Metric
    settings: OptimizeSettings
    opset: int | None = None
    axes: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    """Names of dynamic axes whose size is the same in all samples, by input and axis."""
    lean: LeanSettings = field(default_factory=LeanSettings)
    student_key: str = ""
    """A hash of the code of a student of the user's."""
    processor: str = ""
    processor_folder: Path = Path()
    reference: str = ""
    """What the user calls the source."""
    given: PlainModel = field(default_factory=PlainModel)
    """What the source was made from, where the user gave an estimator or a model of Keras'."""
    command: str = ""
    """What was typed, for the report."""

    @property
    def workdir(self) -> Path:
        """Where unfinished work is kept between runs: a hidden folder beside the bundle."""
        return self.out.absolute().parent / ".forwardpass" / self.out.name


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shipment:
    """The bundle, the evidence behind it, and the checklist."""

    bundle: Bundle
    conversion: Conversion
    optimization: Optimization
    golden: tuple[GoldenCheck, ...]
    checklist: tuple[CheckLine, ...]
    resumed: tuple[str, ...]
    """The steps that were already done for the same inputs and were not run again."""

    @property
    def is_ready(self) -> bool:
        """Whether every limit of the checklist is met."""
        return is_ready(self.checklist)


def ship(request: ShipRequest, *, progress: Progress) -> Shipment:
    """Run the steps that are not done yet, write the bundle, and check it.

    Raises:
        ConversionError: the model cannot be converted, or the result answers differently.
        GoldenMismatch: the finished bundle does not answer as it did while it was built.
        WorkInProgress: another process works on the same bundle.
    """
    store = StepStore(request.workdir)
    with store.locked():
        data_key = _data_key(request.splits)
        resumed: list[str] = []
        start_s = time.monotonic()
        conversion = _convert(request, store, data_key, resumed, _part(progress, 0.0, SHARE_OF_CONVERSION))
        spent_s = time.monotonic() - start_s
        done = SHARE_OF_CONVERSION
        leaner: tuple[Variant, ...] = ()
        if not request.lean.is_empty:
            part = _part(progress, done, SHARE_OF_TRAINING)
            leaner = _lean(request, conversion, store, data_key, resumed, part)
            done += SHARE_OF_TRAINING
        share_of_audit = SHARE_OF_AUDIT if request.settings.profile.ship_audit_s else 0.0
        part = _part(progress, done, SHARE_OF_ALL_BUT_PACKING - share_of_audit - done)
        optimization = _optimize(request, conversion, leaner, spent_s, store, data_key, resumed, part)
        if share_of_audit:
            part = _part(progress, SHARE_OF_ALL_BUT_PACKING - share_of_audit, share_of_audit)
            audits = _audit(request, conversion, optimization, store, data_key, resumed, part)
            optimization = with_full_audits(optimization, audits)
        optimization = replace(optimization, provenance=_provenance(request, conversion))
        progress("packing the bundle", done=SHARE_OF_ALL_BUT_PACKING)
        bundle, lines, golden = _pack(request, conversion, optimization)
    progress("done", done=1.0)
    return Shipment(
        bundle=bundle,
        conversion=conversion,
        optimization=optimization,
        golden=golden,
        checklist=lines,
        resumed=tuple(resumed),
    )


def _convert(
    request: ShipRequest, store: StepStore, data_key: str, resumed: list[str], progress: Progress
) -> Conversion:
    axes = [(name, sorted(named.items())) for name, named in sorted(request.axes.items())]
    key = step_key(CONVERT, VERSION, runtime_versions(), request.source_key, data_key, request.opset, axes)

    def run() -> Conversion:
        check_lean(request.source, request.splits, load_lessons(request.lean, request.splits), request.lean)
        conversion = convert_to_onnx(
            request.source,
            request.splits.calibration,
            out=store.begin(CONVERT) / "model.onnx",
            opset=request.opset,
            axes=request.axes,
            progress=progress,
        )
        return conversion.after(request.given)

    return _once(store, CONVERT, key, Conversion, run, resumed)


def _lean(
    request: ShipRequest,
    conversion: Conversion,
    store: StepStore,
    data_key: str,
    resumed: list[str],
    progress: Progress,
) -> tuple[Variant, ...]:
    lessons = load_lessons(request.lean, request.splits)
    key = step_key(
        _search_key(LEAN, request, conversion, data_key),
        request.lean,
        request.student_key,
        fingerprint_samples(lessons),
        request.opset,
    )

    def run() -> tuple[Variant, ...]:
        with lean_variants(
            request.source,
            request.splits,
            request.metric,
            lessons=lessons,
            folder=store.begin(LEAN),
            checkpoints=store.folder(TRAINING),
            floor=request.settings.floor,
            settings=request.lean,
            opset=request.opset,
            axes=request.axes,
            progress=progress,
        ) as made:
            return made

    return _once(store, LEAN, key, tuple[Variant, ...], run, resumed)


def _optimize(
    request: ShipRequest,
    conversion: Conversion,
    leaner: tuple[Variant, ...],
    spent_s: float,
    store: StepStore,
    data_key: str,
    resumed: list[str],
    progress: Progress,
) -> Optimization:
    key = _search_key(OPTIMIZE, request, conversion, data_key)
    if leaner:
        key = step_key(key, [(variant.name, hash_file(Path(variant.location))) for variant in leaner])

    def run() -> Optimization:
        return optimize_model(
            source_variant(request.source, conversion),
            conversion.variant,
            request.splits,
            request.metric,
            workdir=store.begin(OPTIMIZE),
            settings=request.settings,
            also=leaner,
            axes=request.axes,
            progress=progress,
            memory=store.folder(MEMORY),
            spent_s=spent_s,
        )

    return _once(store, OPTIMIZE, key, Optimization, run, resumed)


def _audit(
    request: ShipRequest,
    conversion: Conversion,
    optimization: Optimization,
    store: StepStore,
    data_key: str,
    resumed: list[str],
    progress: Progress,
) -> FullAudits:
    key = step_key(_search_key(AUDIT, request, conversion, data_key), optimization)

    def run() -> FullAudits:
        store.begin(AUDIT)
        return audit_travellers(
            optimization,
            conversion.variant.name,
            request.splits.validation,
            settings=request.settings,
            progress=progress,
        )

    return _once(store, AUDIT, key, FullAudits, run, resumed)


def _search_key(step: str, request: ShipRequest, conversion: Conversion, data_key: str) -> str:
    """Return what decides the outcome of the search and of everything after it."""
    return step_key(
        step,
        VERSION,
        describe_machine(),
        request.source_key,
        hash_file(Path(conversion.variant.location)),
        data_key,
        request.metric.name,
        request.metric.higher_is_better,
        request.settings,
    )


def _pack(
    request: ShipRequest, conversion: Conversion, optimization: Optimization
) -> tuple[Bundle, tuple[CheckLine, ...], tuple[GoldenCheck, ...]]:
    """Write the bundle with the checklist in it, then verify it as a stranger would."""
    lines = checklist(request.splits, conversion, optimization, request.settings)
    bundle = assemble_bundle(request.out, request, conversion, optimization, lines)
    golden = tuple(verify_variant(bundle, variant.name) for variant in bundle.manifest.variants)
    return bundle, lines, golden


def _provenance(request: ShipRequest, conversion: Conversion) -> Provenance:
    return provenance_of(
        request.reference,
        source_sha256=request.source_key,
        is_torch=isinstance(request.source, TorchSource),
        exporter=conversion.exporter,
        splits=request.splits,
        command=request.command,
    )


def source_variant(source: TorchSource | Path, conversion: Conversion) -> Variant:
    """Return the source as something that can be run: the module itself, or for an ONNX file its checked copy."""
    if isinstance(source, TorchSource):
        return Variant(
            name="source",
            format=Format.TORCH,
            precision=Precision.FP32,
            location=source.reference,
            weights=source.weights,
        )
    return conversion.variant


def _once(
    store: StepStore, step: str, key: str, kind: type[Document], run: Callable[[], Document], resumed: list[str]
) -> Document:
    """Return the finished step's document, or run the step and record it."""
    document = store.find(step, key)
    if document is not None:
        resumed.append(step)
        return msgspec.json.decode(document, type=kind)
    result = run()
    store.finish(step, key, msgspec.json.encode(result))
    return result


def _data_key(splits: SampleSplits) -> str:
    return step_key(*(fingerprint_samples(part) for part in (splits.calibration, splits.validation, splits.test)))


def _part(progress: Progress, start: float, share: float) -> Progress:
    """Show a step's own progress as its part of the whole."""

    def show(text: str, *, done: float) -> None:
        progress(text, done=start + share * done)

    return show
