"""What users name, turned into values: sources, samples, metrics."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from forwardpass.bundle import Bundle, is_bundle, open_bundle
from forwardpass.core.calls import CallSets, calls_from_samples, random_calls
from forwardpass.core.metrics import METRICS, Metric, user_metric
from forwardpass.core.references import is_reference, resolve_reference
from forwardpass.core.samples import SampleSplits
from forwardpass.core.slo import QualityFloor
from forwardpass.core.tensors import BATCH_AXIS, Signature
from forwardpass.core.variants import Format, Precision, Variant
from forwardpass.errors import (
    InvalidMetric,
    InvalidModel,
    InvalidOption,
    InvalidSamples,
    SourceNotFound,
    TensorMismatch,
)
from forwardpass.runtimes import RuntimeOptions, format_of, is_saved_model, is_torch_path, open_runtime
from forwardpass.samples import load_splits

if TYPE_CHECKING:
    from forwardpass.convert import TorchSource
    from forwardpass.lean import LeanSettings

__all__ = [
    "bundled_variants",
    "calls_for",
    "check_fits",
    "check_floor",
    "checked_name",
    "conversion_source",
    "naming_samples",
    "naming_samples_of_a_profile",
    "no_progress",
    "resolve_metric",
    "side_by_side",
    "source_key",
]

NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""Model names stand in URLs and paths."""


def no_progress(text: str, *, done: float) -> None:
    """Let progress pass unheard."""


def _variants_of(model: str, *, weights: str) -> tuple[Variant, ...]:
    """Return what there is to measure behind the words of a user."""
    path = Path(model)
    if is_bundle(path):
        return tuple(bundled_variants(open_bundle(path)))
    if path.is_file():
        return (Variant(name=path.stem, format=format_of(path), precision=Precision.FP32, location=str(path)),)
    if not (is_torch_path(path) or is_reference(model)):
        raise SourceNotFound(
            path=model, expected="a model file, a bundle, a folder with config.json, or 'package.module:factory'"
        )
    return (Variant(name="source", format=Format.TORCH, precision=Precision.FP32, location=model, weights=weights),)


def side_by_side(models: Sequence[str], *, weights: str) -> tuple[Variant, ...]:
    """Return the variants of several models, each with a name of its own; `weights` are the first one's.

    >>> from forwardpass.wiring.inputs import side_by_side
    >>> [variant.name for variant in side_by_side(["model.onnx", "shop-bundle", "model.onnx"], weights="")]
    ['model', 'onnx-fp32', 'model (2)']
    """
    found: list[Variant] = []
    for number, model in enumerate(models):
        for variant in _variants_of(model, weights="" if number else weights):
            taken = {other.name for other in found}
            names = (variant.name, *(f"{variant.name} ({count})" for count in range(2, len(found) + 3)))
            found.append(replace(variant, name=next(name for name in names if name not in taken)))
    return tuple(found)


def bundled_variants(bundle: Bundle) -> Sequence[Variant]:
    """Return the variants of a bundle as files that can be run."""
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


def calls_for(
    variant: Variant, data: str | None, batch_sizes: Sequence[int], axis_sizes: Mapping[str, int]
) -> CallSets:
    """Return inputs to measure with: from the validation split, or made up for a model that says what it takes.

    Raises:
        InvalidSamples: a PyTorch source is to be measured without samples.
        InvalidOption: a size is given for an axis that is not there, or that the samples size already.
    """
    if data is not None:
        if axis_sizes:
            raise InvalidOption(option="--axis", value=next(iter(axis_sizes)), expected="no --data: samples have sizes")
        splits = load_splits(data)
        return calls_from_samples(splits.validation, batch_sizes)
    if variant.format is Format.TORCH:
        raise InvalidSamples(
            origin=variant.location,
            reason="a PyTorch source has no inputs of its own",
            hint="Give some with --data samples.npz, an array named after each argument of forward().",
        )
    signature = open_runtime(variant.format, variant.location, options=RuntimeOptions()).signature
    _check_axes(signature, axis_sizes)
    return random_calls(signature, batch_sizes, axis_sizes)


@contextlib.contextmanager
def naming_samples(data: str | None) -> Iterator[None]:
    """Say of tensors that do not fit the model which samples they are from."""
    try:
        yield
    except TensorMismatch as error:
        if data is None:
            raise
        reason = f"the input '{error.tensor}' {error.reason}; expected {error.expected}"
        raise InvalidSamples(origin=data, reason=reason) from error


@contextlib.contextmanager
def naming_samples_of_a_profile(data: str | None, variant: Variant, calls: CallSets) -> Iterator[None]:
    """Do that where a measuring process refuses them: it knows no files, and a model is loaded again only then."""
    try:
        yield
    except InvalidModel:
        if data is not None and variant.format is not Format.TORCH:
            signature = open_runtime(variant.format, variant.location, options=RuntimeOptions()).signature
            with naming_samples(data):
                for call in (call for same_size in calls.values() for call in same_size):
                    signature.validate(call)
        raise


def _check_axes(signature: Signature, axis_sizes: Mapping[str, int]) -> None:
    known = {dim for spec in signature.inputs for dim in spec.shape if isinstance(dim, str)} - {BATCH_AXIS}
    for name in axis_sizes.keys() - known:
        expected = f"one of this model's dynamic axes ({', '.join(sorted(known))})" if known else "none"
        reason = "" if known else ": besides the batch, which --batch-sizes sets, no axis of this model is dynamic"
        raise InvalidOption(option="--axis", value=name, expected=f"{expected}{reason}")


def conversion_source(model: str, weights: str) -> TorchSource | Path:
    """Return the source behind the words of a user.

    Raises:
        SourceNotFound: there is no such file, and it is no reference either.
    """
    from forwardpass.convert import TorchSource

    path = Path(model)
    if is_torch_path(path):
        return TorchSource(reference=model, weights=weights)
    if path.is_file() or is_saved_model(path):
        return path
    if not is_reference(model):
        raise SourceNotFound(
            path=model, expected="a model file, a folder with config.json, or 'package.module:factory'"
        )
    if weights and not Path(weights).is_file():
        raise SourceNotFound(path=weights, expected="a .safetensors file")
    return TorchSource(reference=model, weights=weights)


def check_fits(source: TorchSource | Path, lean: LeanSettings, axes: Mapping[str, Mapping[int, str]]) -> None:
    """Refuse, before anything is made, wishes that only a PyTorch source can fulfil.

    Raises:
        InvalidOption: the source is no PyTorch module, and it is to be trained or has axes named.
    """
    from forwardpass.convert import check_axes_can_be_named
    from forwardpass.lean.making import trainable

    if not lean.is_empty:
        trainable(source)
    check_axes_can_be_named(source, axes)


def source_key(source: TorchSource | Path) -> str:
    """Hash what makes a source the same source: the module's own file and the weights, or the ONNX file.

    Code that the module imports from elsewhere is not seen; a changed answer is, since the converted file is hashed.
    """
    digest = hashlib.sha256()
    if isinstance(source, Path):
        files = sorted(file for file in source.rglob("*") if file.is_file()) if source.is_dir() else [source]
    elif is_torch_path(given := Path(source.reference)):
        files = sorted(file for file in given.iterdir() if file.is_file()) if given.is_dir() else [given]
    else:
        digest.update(source.reference.encode())
        resolve_reference(source.reference)
        spec = importlib.util.find_spec(source.reference.partition(":")[0])
        files = [Path(origin) for origin in (spec.origin if spec else None, source.weights) if origin]
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def check_floor(floor: QualityFloor, metric: Metric) -> None:
    """Refuse a share of a score that would let every variant pass; an error may well double.

    Raises:
        InvalidOption: the share is 100 % or more.
    """
    if metric.higher_is_better and floor.is_relative and floor.max_drop >= 1:
        expected = f"a share below 100%: of the metric '{metric.name}', more is better, and nothing would be left of it"
        raise InvalidOption(option="--max-drop", value=f"{floor.max_drop * 100:g}%", expected=expected)


def resolve_metric(name: str | None, splits: SampleSplits, *, higher_is_better: bool) -> Metric:
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


def checked_name(name: str) -> str:
    """Return `name` if it can stand in a URL.

    Raises:
        InvalidOption: it cannot.
    """
    if not NAME.fullmatch(name) or name in (".", ".."):
        raise InvalidOption(option="--name", value=name, expected="1 to 64 letters, digits, '.', '_' or '-'")
    return name
