"""The public functions: the one place that picks real adapters and puts the layers together.

Each function imports its layer when it is called: serving must not load what only building needs.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from forwardpass.bundle import Bundle, is_bundle, open_bundle
from forwardpass.core.calls import CallSets, calls_from_samples, random_calls
from forwardpass.core.measurement import Machine
from forwardpass.core.metrics import METRICS, Metric, user_metric
from forwardpass.core.protocols import Progress
from forwardpass.core.references import is_reference, resolve_reference
from forwardpass.core.samples import SampleSplits
from forwardpass.core.variants import Format, Precision, Variant
from forwardpass.errors import InvalidMetric, InvalidOption, InvalidSamples, SourceNotFound
from forwardpass.predict import GoldenCheck, Predictor, verify_variant
from forwardpass.runtimes import RuntimeOptions, open_runtime
from forwardpass.samples import load_splits

if TYPE_CHECKING:
    from forwardpass.convert import Conversion, TorchSource
    from forwardpass.optimize import Optimization, OptimizeSettings
    from forwardpass.profile import ProfileSettings, VariantProfile
    from forwardpass.ship import Shipment

__all__ = [
    "Inspection",
    "ProfileReport",
    "convert_model",
    "inspect_bundle",
    "load",
    "optimize_model",
    "profile_model",
    "serve_model",
    "ship_model",
]


NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""Model names stand in URLs and paths."""


def _no_progress(text: str, *, done: float) -> None:
    """Let progress pass unheard."""


def load(bundle: Path | str, *, variant: str | None = None, num_threads: int = 1) -> Predictor:
    """Open a bundle for use in this process, without a server, with the same checks.

    Raises:
        BundleError: the bundle cannot be trusted.
        GoldenMismatch: it answers differently on this machine.
    """
    return Predictor.open(bundle, variant=variant, num_threads=num_threads)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """A bundle whose files are whole, and how far its variants are from their golden answers on this machine."""

    bundle: Bundle
    golden: tuple[GoldenCheck, ...]


def inspect_bundle(bundle: Path | str) -> Inspection:
    """Check every file of a bundle and re-run the golden answers of every variant.

    Raises:
        BundleError: a file is missing, altered or undeclared.
        GoldenMismatch: a variant answers differently on this machine.
    """
    opened = open_bundle(bundle)
    checks = tuple(verify_variant(opened, item.name) for item in opened.manifest.variants)
    return Inspection(bundle=opened, golden=checks)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileReport:
    """What `profile_model` measured, and where."""

    model: str
    profiles: tuple[VariantProfile, ...]
    machine: Machine


def profile_model(
    model: Path | str,
    *,
    data: str | None = None,
    weights: str = "",
    axis_sizes: Mapping[str, int] | None = None,
    settings: ProfileSettings | None = None,
    progress: Progress = _no_progress,
) -> ProfileReport:
    """Measure an ONNX file, a PyTorch source (`package.module:factory`), or every variant of a bundle.

    Without `data` the inputs are made up, with `axis_sizes` for the sizes of dynamic axes (16 where it says nothing);
    a PyTorch source has no inputs of its own and needs `data`.

    Raises:
        UsageError: the model or the samples cannot be used.
        ChildFailed: a measuring process ended before it answered.
    """
    from forwardpass.profile import ProfileSettings, describe_machine, profile_variants

    chosen = settings or ProfileSettings()
    variants = _variants_of(str(model), weights=weights)
    calls = _calls_for(variants[0], data, chosen.batch_sizes, axis_sizes or {})
    profiles = profile_variants(variants, calls, settings=chosen, progress=progress)
    return ProfileReport(model=str(model), profiles=profiles, machine=describe_machine())


def convert_model(
    model: Path | str,
    *,
    out: Path | str,
    data: str | None = None,
    weights: str = "",
    opset: int | None = None,
    trust_pickle: bool = False,
    progress: Progress = _no_progress,
) -> Conversion:
    """Convert a PyTorch source or an ONNX file to ONNX at `out`, kept only if it answers like its source.

    Raises:
        UsageError: the source or the samples cannot be used.
        ConversionError: it cannot be converted, or the result answers differently.
    """
    from forwardpass.convert import convert_to_onnx

    source = _source(str(model), weights)
    samples = load_splits(data).calibration if data else None
    return convert_to_onnx(source, samples, out=Path(out), opset=opset, trust_pickle=trust_pickle, progress=progress)


def optimize_model(
    model: Path | str,
    *,
    data: str,
    out: Path | str,
    weights: str = "",
    metric: str | None = None,
    higher_is_better: bool = True,
    settings: OptimizeSettings | None = None,
    trust_pickle: bool = False,
    progress: Progress = _no_progress,
) -> Optimization:
    """Make leaner variants of a model in the folder `out`, measure each beside the source, and choose one.

    `metric` is the name of a built-in metric or a `package.module:function` of yours (see `core.metrics.user_metric`),
    for which `higher_is_better` counts. `ship_model` does the same and goes on to a bundle.

    Raises:
        UsageError: the source, the samples or the metric cannot be used.
        ConversionError: the model cannot be converted to ONNX.
    """
    from forwardpass.convert import convert_to_onnx
    from forwardpass.optimize import OptimizeSettings
    from forwardpass.optimize import optimize_model as optimize
    from forwardpass.ship import source_variant

    splits = load_splits(data)
    chosen_metric = _metric(metric, splits, higher_is_better=higher_is_better)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    source = _source(str(model), weights)
    conversion = convert_to_onnx(
        source, splits.calibration, out=folder / "onnx-fp32.onnx", trust_pickle=trust_pickle, progress=progress
    )
    return optimize(
        source_variant(source, conversion),
        conversion.variant,
        splits,
        chosen_metric,
        workdir=folder,
        settings=settings or OptimizeSettings(),
        progress=progress,
    )


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
    trust_pickle: bool = False,
    processor: str = "",
    processor_folder: Path | str = "",
    progress: Progress = _no_progress,
) -> Shipment:
    """Run the whole checklist and write a bundle to `out`.

    Steps that were finished for the same source, samples, settings, software and machine are not run again; the work
    of an interrupted run is kept in `.forwardpass` beside `out`.

    Raises:
        UsageError: the source, the samples or an option cannot be used.
        ConversionError: the model cannot be converted to ONNX.
        EnvironmentProblem: a package is missing, the disk is full, or another process works on the same bundle.
    """
    from forwardpass.optimize import OptimizeSettings
    from forwardpass.ship import ShipRequest, ship

    splits = load_splits(data)
    source = _source(str(model), weights)
    request = ShipRequest(
        source=source,
        source_key=_source_key(source),
        splits=splits,
        name=_checked_name(name or Path(out).name),
        out=Path(out),
        metric=_metric(metric, splits, higher_is_better=higher_is_better),
        settings=settings or OptimizeSettings(),
        opset=opset,
        trust_pickle=trust_pickle,
        processor=processor,
        processor_folder=Path(processor_folder),
    )
    return ship(request, progress=progress)


def _variants_of(model: str, *, weights: str) -> tuple[Variant, ...]:
    """Return what there is to measure behind the words of a user."""
    path = Path(model)
    if is_bundle(path):
        return tuple(_bundled_variants(open_bundle(path)))
    if path.is_file():
        return (Variant(name=path.stem, format=Format.ONNX, precision=Precision.FP32, location=str(path)),)
    if not is_reference(model):
        raise SourceNotFound(path=model, expected="an ONNX file, a bundle, or 'package.module:factory'")
    return (Variant(name="source", format=Format.TORCH, precision=Precision.FP32, location=model, weights=weights),)


def _bundled_variants(bundle: Bundle) -> Sequence[Variant]:
    return [
        Variant(
            name=item.name,
            format=item.format,
            precision=item.precision,
            location=str(bundle.locate(item.path)),
            recipe=item.recipe,
        )
        for item in bundle.manifest.variants
    ]


def _calls_for(
    variant: Variant, data: str | None, batch_sizes: Sequence[int], axis_sizes: Mapping[str, int]
) -> CallSets:
    if data is not None:
        splits = load_splits(data)
        return calls_from_samples(splits.validation, batch_sizes)
    if variant.format is Format.TORCH:
        raise InvalidSamples(
            origin=variant.location,
            reason="a PyTorch source has no inputs of its own",
            hint="Give some with --data samples.npz, an array named after each argument of forward().",
        )
    signature = open_runtime(variant.format, variant.location, options=RuntimeOptions()).signature
    return random_calls(signature, batch_sizes, axis_sizes)


def _source(model: str, weights: str) -> TorchSource | Path:
    from forwardpass.convert import TorchSource

    path = Path(model)
    if path.is_file():
        return path
    if not is_reference(model):
        raise SourceNotFound(path=model, expected="an ONNX file or 'package.module:factory'")
    if weights and not Path(weights).is_file():
        raise SourceNotFound(path=weights, expected="a .safetensors file")
    return TorchSource(reference=model, weights=weights)


def _source_key(source: TorchSource | Path) -> str:
    """Hash what makes a source the same source: the module's own file and the weights, or the ONNX file.

    Code that the module imports from elsewhere is not seen; a changed answer is, since the converted file is hashed.
    """
    digest = hashlib.sha256()
    if isinstance(source, Path):
        files = [source]
    else:
        digest.update(source.reference.encode())
        resolve_reference(source.reference)
        spec = importlib.util.find_spec(source.reference.partition(":")[0])
        files = [Path(origin) for origin in (spec.origin if spec else None, source.weights) if origin]
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _metric(name: str | None, splits: SampleSplits, *, higher_is_better: bool) -> Metric:
    """Return the metric that a user named, or the one that fits the labels."""
    if name is None:
        return METRICS[_default_metric(splits)]
    if name in METRICS:
        return METRICS[name]
    if not is_reference(name):
        raise InvalidMetric(
            metric=name,
            reason="there is none of this name",
            hint=f"Use {', '.join(METRICS)} or package.module:function.",
        )
    function = resolve_reference(name)
    if not callable(function):
        raise InvalidMetric(metric=name, reason="it is not a function")
    return user_metric(name, function, higher_is_better=higher_is_better)


def _default_metric(splits: SampleSplits) -> str:
    labels = splits.validation.groups[0].labels
    if labels is None:
        return "cosine"
    return "accuracy" if labels.dtype.kind in "iub" and labels.ndim == 1 else "mean-error"


def _checked_name(name: str) -> str:
    if not NAME.fullmatch(name) or name in (".", ".."):
        raise InvalidOption(option="--name", value=name, expected="1 to 64 letters, digits, '.', '_' or '-'")
    return name
