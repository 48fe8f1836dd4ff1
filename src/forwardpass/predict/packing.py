"""Packing variants into a bundle, each with the golden answers that it gives here and now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from forwardpass.bundle import (
    SCHEMA_VERSION,
    Bundle,
    BundledVariant,
    BundleWriter,
    GoldenRecord,
    Manifest,
    PaddingRecord,
    ProcessorRecord,
    open_bundle,
)
from forwardpass.core.latency import LatencyTable
from forwardpass.core.measurement import Machine
from forwardpass.core.reference import TensorStatistics
from forwardpass.core.slo import Slo
from forwardpass.core.tensors import Array, Signature
from forwardpass.core.variants import BatchInvariance, Format, Variant
from forwardpass.core.version import VERSION
from forwardpass.errors import InvalidModel
from forwardpass.processors import open_processor, processor_files
from forwardpass.runtimes import RuntimeOptions, companions, open_runtime

__all__ = ["FLOAT_TOLERANCE", "PackingList", "VariantToPack", "pack_bundle"]

FLOAT_TOLERANCE = 1e-4
"""Relative error that a float variant may show on another processor: a hundred times the rounding that we see."""

GOLDEN_INPUTS = "golden/inputs.npz"
PROCESSOR_FOLDER = "processor"


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantToPack:
    """A variant with what its bundle will say of it."""

    variant: Variant
    invariance: BatchInvariance
    exact_batch_sizes: tuple[int, ...] = ()
    exact_thread_counts: tuple[int, ...] = ()
    padding: PaddingRecord | None = None
    latency: tuple[LatencyTable, ...] = ()
    golden_tolerance: float = FLOAT_TOLERANCE


@dataclass(frozen=True, slots=True, kw_only=True)
class PackingList:
    """Everything that goes into one bundle. The first variant is the default one."""

    name: str
    variants: Sequence[VariantToPack]
    golden_inputs: Sequence[dict[str, Array]]
    machine: Machine
    slo: Slo | None = None
    reference_inputs: tuple[TensorStatistics, ...] = ()
    reference_outputs: tuple[TensorStatistics, ...] = ()
    processor: str = ""
    processor_folder: Path = Path()
    documents: Mapping[str, bytes] = field(default_factory=dict)
    """Further files by their path in the bundle: evidence and reports."""


def pack_bundle(destination: Path, packing: PackingList) -> Bundle:
    """Write the bundle, open it again and return it; whatever was at `destination` before is replaced only then.

    Raises:
        UnknownProcessor: no installed package provides the processor.
        InvalidModel: a variant cannot be loaded.
        StorageFailed: the disk is full or not writable.
    """
    with BundleWriter(destination) as writer:
        writer.add_calls(GOLDEN_INPUTS, packing.golden_inputs)
        bundled = tuple(_add_variant(writer, item, packing) for item in packing.variants)
        processor = _add_processor(writer, packing)
        for member, content in packing.documents.items():
            writer.add_bytes(member, content)
        writer.commit(
            Manifest(
                schema_version=SCHEMA_VERSION,
                name=packing.name,
                created_at=datetime.now(UTC).isoformat(timespec="seconds"),
                forwardpass_version=VERSION,
                signature=_signature(packing),
                default_variant=bundled[0].name,
                variants=bundled,
                golden_inputs=GOLDEN_INPUTS,
                files={},
                machine=packing.machine,
                reference_inputs=packing.reference_inputs,
                reference_outputs=packing.reference_outputs,
                processor=processor,
                slo=packing.slo,
            )
        )
    return open_bundle(destination)


def _add_variant(writer: BundleWriter, item: VariantToPack, packing: PackingList) -> BundledVariant:
    variant = item.variant
    path = f"variants/{variant.name}/model{Path(variant.location).suffix}"
    golden = GoldenRecord(path=f"golden/{variant.name}.npz", tolerance=item.golden_tolerance)
    runtime = open_runtime(variant.format, variant.location, options=RuntimeOptions())
    writer.add_file(path, Path(variant.location))
    for companion in companions(variant.format, Path(variant.location)):
        writer.add_file(_member_of(companion, variant, path), companion)
    writer.add_calls(golden.path, [runtime.run(call) for call in packing.golden_inputs])
    return BundledVariant(
        name=variant.name,
        format=variant.format,
        precision=variant.precision,
        path=path,
        recipe=variant.recipe,
        invariance=item.invariance,
        exact_batch_sizes=item.exact_batch_sizes,
        exact_thread_counts=item.exact_thread_counts,
        padding=item.padding,
        golden=golden,
        latency=item.latency,
    )


def _member_of(companion: Path, variant: Variant, member: str) -> str:
    """Return where a file beside a model file goes in the bundle.

    Weights outside of an ONNX file are named in it, so they keep their name; all others are named after the model.
    """
    if variant.format is not Format.ONNX:
        return str(PurePosixPath(member).with_suffix(companion.suffix))
    beside = companion.relative_to(Path(variant.location).parent)
    kept = str(PurePosixPath(member).parent / beside.as_posix())
    if kept == member:
        raise InvalidModel(
            path=variant.location, reason=f"its weights are in '{beside}', which a bundle calls the model"
        )
    return kept


def _add_processor(writer: BundleWriter, packing: PackingList) -> ProcessorRecord | None:
    """Copy the processor's files, once it has shown that it can be constructed from them."""
    if not packing.processor:
        return None
    open_processor(packing.processor, packing.processor_folder, _signature(packing))
    for file in processor_files(packing.processor, packing.processor_folder):
        writer.add_file(f"{PROCESSOR_FOLDER}/{file.name}", file)
    return ProcessorRecord(name=packing.processor, folder=PROCESSOR_FOLDER)


def _signature(packing: PackingList) -> Signature:
    default = packing.variants[0].variant
    return open_runtime(default.format, default.location, options=RuntimeOptions()).signature
