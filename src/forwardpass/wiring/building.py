"""From a trained model to a bundle: profile, convert, optimise, ship.

Each function imports its layer when it is called: who only profiles must not pay for the exporter.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from forwardpass.bundle import check_destination
from forwardpass.core.measurement import Machine
from forwardpass.core.protocols import Progress
from forwardpass.core.samples import signature_of_samples
from forwardpass.core.variants import Format, Precision
from forwardpass.errors import InvalidOption, StorageFailed
from forwardpass.processors import open_processor
from forwardpass.report.writing import write_text
from forwardpass.samples import load_splits
from forwardpass.wiring.inputs import (
    calls_for,
    check_fits,
    check_floor,
    checked_name,
    conversion_source,
    naming_samples,
    naming_samples_of_a_profile,
    no_progress,
    resolve_metric,
    side_by_side,
    source_key,
)

if TYPE_CHECKING:
    from forwardpass.convert import Conversion
    from forwardpass.lean import LeanSettings
    from forwardpass.optimize import Optimization, OptimizeSettings
    from forwardpass.profile import ProfileSettings, VariantProfile
    from forwardpass.ship import Shipment

__all__ = ["ProfileReport", "convert_model", "optimize_model", "profile_model", "ship_model"]


REPORT_SCHEMA_VERSION = 1
"""Of the evidence that a search leaves in its folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileReport:
    """What `profile_model` measured, and where."""

    model: str
    profiles: tuple[VariantProfile, ...]
    machine: Machine


def profile_model(
    model: Path | str,
    *,
    against: Sequence[Path | str] = (),
    data: str | None = None,
    weights: str = "",
    axis_sizes: Mapping[str, int] | None = None,
    settings: ProfileSettings | None = None,
    trust_pickle: bool = False,
    progress: Progress = no_progress,
) -> ProfileReport:
    """Measure an ONNX file, a PyTorch source (`package.module:factory`), or every variant of a bundle.

    Without `data` the inputs are made up, with `axis_sizes` for the sizes of dynamic axes (16 where it says nothing);
    a PyTorch source has no inputs of its own and needs `data`. What is named in `against` is measured beside it, with
    the same calls and in the same minutes.

    >>> import forwardpass
    >>> settings = forwardpass.ProfileSettings(
    ...     batch_sizes=(1, 8), thread_counts=(1,), num_rounds=3, round_s=0.01, num_cold_starts=2)
    >>> (profile,) = forwardpass.profile_model("model.onnx", data="samples.npz", settings=settings).profiles
    >>> profile.batch_sizes, profile.invariance.verdict.value
    ((1, 8), 'bitwise')

    Raises:
        UsageError: the model or the samples cannot be used.
        ChildFailed: a measuring process ended before it answered.
    """
    from forwardpass.convert import plain_model, plain_weights
    from forwardpass.profile import ProfileSettings, describe_machine, profile_variants

    chosen = settings or ProfileSettings()
    samples = load_splits(data).calibration if data else None
    with (
        plain_weights(weights, trust_pickle=trust_pickle) as plain,
        plain_model(str(model), samples, trust_pickle=trust_pickle, progress=progress) as given,
    ):
        variants = side_by_side([given.path, *map(str, against)], weights=plain)
        calls = calls_for(variants[0], data, chosen.batch_sizes, axis_sizes or {})
        with naming_samples_of_a_profile(data, variants[0], calls):
            profiles = profile_variants(variants, calls, settings=chosen, progress=progress)
    return ProfileReport(model=str(model), profiles=profiles, machine=describe_machine())


def convert_model(
    model: Path | str,
    *,
    out: Path | str,
    to: str = "onnx",
    data: str | None = None,
    weights: str = "",
    opset: int | None = None,
    axes: Mapping[str, Mapping[int, str]] | None = None,
    precision: str = "fp32",
    max_sizes: Mapping[str, int] | None = None,
    tolerance: float | None = None,
    trust_pickle: bool = False,
    progress: Progress = no_progress,
) -> Conversion:
    """Convert a PyTorch source or an ONNX file to another form at `out`, kept only if it answers like its source.

    `to` is `onnx`, `ort`, `pt2` (torch.export), `aotinductor` (that, compiled for this processor), `torchscript`
    (legacy), `openvino`, `litert` or `executorch`; `precision` is `fp32`, and for LiteRT and ExecuTorch also
    `int8-dynamic` or `int8-static`. `max_sizes` says how long dynamic axes may get, for ExecuTorch:
    `{"batch": 64, "sequence": 512}`. `tolerance` is the greatest relative error of an output, by default 1e-4, and 0.1
    in 8 bits.

    `axes` names dynamic axes whose size is the same in all samples: `{"pixels": {2: "height"}}`. The result is run at
    other sizes of them, too.

    >>> import forwardpass
    >>> conversion = forwardpass.convert_model("model.onnx", out="copy.onnx", data="samples.npz")
    >>> conversion.exporter, conversion.worst_difference
    ('as-is', 0.0)

    Raises:
        UsageError: the source or the samples cannot be used.
        ConversionError: it cannot be converted, or the result answers differently.
    """
    from forwardpass.convert import convert, plain_model, plain_weights

    samples = load_splits(data).calibration if data else None
    with (
        naming_samples(data),
        plain_weights(weights, trust_pickle=trust_pickle) as plain,
        plain_model(str(model), samples, trust_pickle=trust_pickle, progress=progress) as given,
    ):
        source = conversion_source(given.path, plain)
        _check_spares_inputs(Path(out), (str(model), data or "", weights))
        conversion = convert(
            source,
            samples,
            to=_target(to),
            out=Path(out),
            opset=opset,
            axes=axes,
            precision=_precision(precision),
            max_sizes=max_sizes,
            tolerance=tolerance,
            progress=progress,
        )
        return conversion.after(given)


def _check_spares_inputs(out: Path, inputs: Sequence[str]) -> None:
    """Refuse to overwrite what the conversion reads: its source would be gone."""
    for given in inputs:
        if given and out.exists() and Path(given).exists() and out.samefile(given):
            raise InvalidOption(option="--out", value=str(out), expected="another file than those that are read")


def _target(to: str) -> Format:
    from forwardpass.convert import TARGETS

    if to not in TARGETS:
        raise InvalidOption(option="--to", value=to, expected=f"one of {', '.join(TARGETS)}")
    return Format(to)


def _precision(name: str) -> Precision:
    if name not in tuple(Precision):
        raise InvalidOption(option="--precision", value=name, expected=f"one of {', '.join(Precision)}")
    return Precision(name)


def optimize_model(
    model: Path | str,
    *,
    data: str,
    out: Path | str,
    weights: str = "",
    metric: str | None = None,
    higher_is_better: bool = True,
    settings: OptimizeSettings | None = None,
    opset: int | None = None,
    axes: Mapping[str, Mapping[int, str]] | None = None,
    trust_pickle: bool = False,
    lean: LeanSettings | None = None,
    progress: Progress = no_progress,
    command: str = "",
) -> Optimization:
    """Make leaner variants of a model in the folder `out`, measure each beside the source, and choose one.

    The folder also gets `report.html`, a page that loads nothing, and the same as `optimization.json`; `command` is
    what the page shows to be typed to come to the same again.

    `metric` is the name of a built-in metric or a `package.module:function` of yours (see `core.metrics.user_metric`),
    for which `higher_is_better` counts. `lean` asks for pruned and distilled networks, too. `ship_model` does the same
    and goes on to a bundle.

    >>> import forwardpass
    >>> settings = forwardpass.OptimizeSettings(
    ...     floor=forwardpass.QualityFloor.parse("2%"), profile=forwardpass.ProfileSettings.quick())
    >>> result = forwardpass.optimize_model(
    ...     "model.onnx", data="samples.npz", out="variants", metric="cosine", settings=settings)
    >>> [candidate.variant.name for candidate in result.candidates if candidate.profile is not None][:3]
    ['onnx-fp32', 'onnx-graph', 'fp16-storage']

    Raises:
        UsageError: the source, the samples or the metric cannot be used.
        ConversionError: the model cannot be converted to ONNX.
    """
    from forwardpass.convert import convert_to_onnx, plain_model, plain_weights
    from forwardpass.lean import LeanSettings
    from forwardpass.lean.making import check_lean, lean_variants, load_lessons
    from forwardpass.optimize import OptimizeSettings
    from forwardpass.optimize import optimize_model as optimize
    from forwardpass.optimize.provenance import provenance_of
    from forwardpass.ship import source_variant

    start_s = time.monotonic()
    splits = load_splits(data)
    chosen_metric = resolve_metric(metric, splits, higher_is_better=higher_is_better)
    chosen_settings, wishes = settings or OptimizeSettings(), lean or LeanSettings()
    check_floor(chosen_settings.floor, chosen_metric)
    lessons = load_lessons(wishes, splits)
    named = conversion_source(str(model), weights)
    check_fits(named, wishes, axes or {})
    with (
        _made_folder(Path(out)) as folder,
        naming_samples(data),
        plain_weights(weights, trust_pickle=trust_pickle) as plain,
        plain_model(str(model), splits.calibration, trust_pickle=trust_pickle, progress=progress) as given,
    ):
        source = conversion_source(given.path, plain)
        check_lean(source, splits, lessons, wishes)
        conversion = convert_to_onnx(
            source, splits.calibration, out=folder / "onnx-fp32.onnx", opset=opset, axes=axes, progress=progress
        ).after(given)
        spent_s = time.monotonic() - start_s
        with lean_variants(
            source,
            splits,
            chosen_metric,
            lessons=lessons,
            folder=folder,
            checkpoints=folder / ".training",
            floor=chosen_settings.floor,
            settings=wishes,
            opset=opset,
            axes=axes,
            progress=progress,
        ) as leaner:
            found = optimize(
                source_variant(source, conversion),
                conversion.variant,
                splits,
                chosen_metric,
                workdir=folder,
                settings=chosen_settings,
                also=leaner,
                axes=axes,
                progress=progress,
                spent_s=spent_s,
            )
        found = replace(
            found,
            provenance=provenance_of(
                str(model),
                source_sha256=source_key(named),
                is_torch=not isinstance(source, Path),
                exporter=conversion.exporter,
                splits=splits,
                command=command,
            ),
        )
    _write_report(folder, Path(model).name, conversion, found)
    return found


@contextlib.contextmanager
def _made_folder(path: Path) -> Iterator[Path]:
    """Yield the folder, made if need be; if then nothing comes to be in it, it is removed again.

    Raises:
        InvalidOption: there is a file of this name.
        StorageFailed: it cannot be made.
    """
    if path.exists() and not path.is_dir():
        raise InvalidOption(option="--out", value=str(path), expected="a folder, and this is a file")
    is_new = not path.is_dir()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageFailed(path=str(path), reason=error.strerror or str(error)) from error
    try:
        yield path
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # it holds something
                path.rmdir()


def _write_report(folder: Path, name: str, conversion: Conversion, found: Optimization) -> None:
    import msgspec

    from forwardpass.optimize.page import render_optimization_page

    write_text(folder / "report.html", render_optimization_page(name, conversion, found))
    document = {"schema_version": REPORT_SCHEMA_VERSION, "conversion": conversion, "optimization": found}
    text = msgspec.json.format(msgspec.json.encode(document), indent=2).decode()
    write_text(folder / "optimization.json", f"{text}\n")


def ship_model(
    model: Path | str,
    *,
    data: str,
    out: Path | str,
    name: str | None = None,
    weights: str = "",
    metric: str | None = None,
    higher_is_better: bool = True,
    settings: OptimizeSettings | None = None,
    opset: int | None = None,
    axes: Mapping[str, Mapping[int, str]] | None = None,
    trust_pickle: bool = False,
    lean: LeanSettings | None = None,
    processor: str = "",
    processor_folder: Path | str = "",
    progress: Progress = no_progress,
    command: str = "",
) -> Shipment:
    """Run the whole checklist and write a bundle to `out`.

    `lean` asks for pruned and distilled networks, as in `optimize_model`. Steps that were finished for the same source,
    samples, settings, software and machine are not run again; the work of an interrupted run is kept in `.forwardpass`
    beside `out`. `command` is what the report shows to be typed to come to the same again.

    >>> import forwardpass
    >>> settings = forwardpass.OptimizeSettings(
    ...     slo=forwardpass.Slo.parse("p95=1s"), profile=forwardpass.ProfileSettings.quick())
    >>> shipment = forwardpass.ship_model(
    ...     "model.onnx", data="samples.npz", out="made-bundle", metric="cosine", settings=settings)
    >>> shipment.is_ready, shipment.bundle.name
    (True, 'made-bundle')

    Raises:
        UsageError: the source, the samples or an option cannot be used.
        ConversionError: the model cannot be converted to ONNX.
        EnvironmentProblem: a package is missing, the disk is full, or another process works on the same bundle.
    """
    from forwardpass.convert import TorchSource, plain_model, plain_weights
    from forwardpass.lean import LeanSettings
    from forwardpass.lean.making import load_lessons
    from forwardpass.optimize import OptimizeSettings
    from forwardpass.ship import ShipRequest, ship

    check_destination(Path(out).absolute())
    if processor:
        open_processor(processor, Path(processor_folder))  # a missing file is told before the samples are read
    splits = load_splits(data)
    if processor:
        open_processor(processor, Path(processor_folder), signature_of_samples(splits.calibration))
    chosen_metric = resolve_metric(metric, splits, higher_is_better=higher_is_better)
    chosen_settings, wishes = settings or OptimizeSettings(), lean or LeanSettings()
    check_floor(chosen_settings.floor, chosen_metric)
    student = wishes.student
    load_lessons(wishes, splits)  # what is wrong with them is told before the conversion
    named = conversion_source(str(model), weights)
    check_fits(named, wishes, axes or {})
    key = source_key(named)
    with (
        naming_samples(data),
        plain_weights(weights, trust_pickle=trust_pickle) as plain,
        plain_model(str(model), splits.calibration, trust_pickle=trust_pickle, progress=progress) as given,
    ):
        request = ShipRequest(
            source=conversion_source(given.path, plain),
            source_key=key,
            splits=splits,
            name=checked_name(name or Path(out).absolute().name),
            out=Path(out),
            metric=chosen_metric,
            settings=chosen_settings,
            opset=opset,
            axes=axes or {},
            lean=wishes,
            student_key=source_key(TorchSource(reference=student.reference)) if student and student.reference else "",
            processor=processor,
            processor_folder=Path(processor_folder),
            reference=str(model),
            given=given,
            command=command,
        )
        return ship(request, progress=progress)
