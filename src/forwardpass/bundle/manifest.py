"""The bundle's table of contents, as it stands in `manifest.json`."""

from __future__ import annotations

import msgspec

from forwardpass.core.latency import LatencyTable
from forwardpass.core.measurement import Machine
from forwardpass.core.reference import TensorStatistics
from forwardpass.core.slo import Slo
from forwardpass.core.tensors import Signature
from forwardpass.core.variants import BatchInvariance, Format, Precision, Recipe
from forwardpass.errors import BundleDamaged, UnsupportedSchema

__all__ = [
    "MANIFEST_NAME",
    "SCHEMA_VERSION",
    "BundledVariant",
    "FileRecord",
    "GoldenRecord",
    "Manifest",
    "PaddingRecord",
    "ProcessorRecord",
    "decode_manifest",
    "encode_manifest",
]

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"


class FileRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hash and size of one file of the bundle."""

    sha256: str
    size_bytes: int


class GoldenRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a variant's golden outputs are and how far an answer may be from them (relative error)."""

    path: str
    tolerance: float


class PaddingRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far answers move when rows are padded with zeros along a dynamic axis to the length of a longer one."""

    axis: str
    invariance: BatchInvariance


class BundledVariant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One runnable form in the bundle. `path` is relative to the bundle's folder."""

    name: str
    format: Format
    precision: Precision
    path: str
    recipe: Recipe
    invariance: BatchInvariance
    golden: GoldenRecord
    exact_batch_sizes: tuple[int, ...] = ()
    """The batch sizes, in increasing order, at which answers are bitwise equal to each other whatever the neighbours
    and the position; a server that pads every batch up to the next of them answers bitwise the same. Empty unless
    `invariance` is `FIXED_SHAPES`."""
    exact_thread_counts: tuple[int, ...] = ()
    """The numbers of threads, in increasing order, with which answers are bitwise equal to each other; empty where no
    two were found, or nobody compared them."""
    padding: PaddingRecord | None = None
    """None where it was not tried, or changes answers."""
    latency: tuple[LatencyTable, ...] = ()
    """One table for each number of threads that was measured."""

    def latency_for(self, num_threads: int | None = None) -> LatencyTable | None:
        """Return the table for `num_threads`, or without it the one with the lowest latency at batch size 1."""
        tables = [table for table in self.latency if num_threads in (None, table.num_threads)]
        return min(tables, key=lambda table: table.points[0].p50_s, default=None)


class ProcessorRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The processor's entry point, and the folder of its files inside the bundle."""

    name: str
    folder: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that a bundle says about itself."""

    schema_version: int
    name: str
    created_at: str
    """UTC, ISO 8601."""
    forwardpass_version: str
    signature: Signature
    default_variant: str
    variants: tuple[BundledVariant, ...]
    golden_inputs: str
    files: dict[str, FileRecord]
    """Every file but the manifest itself, by its relative path with forward slashes."""
    machine: Machine
    """Where the variants were measured."""
    reference_inputs: tuple[TensorStatistics, ...] = ()
    reference_outputs: tuple[TensorStatistics, ...] = ()
    processor: ProcessorRecord | None = None
    slo: Slo | None = None


def encode_manifest(manifest: Manifest) -> bytes:
    """Write the manifest as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def decode_manifest(text: bytes, *, path: str) -> Manifest:
    """Read and check a manifest; `path` names the bundle in errors.

    Raises:
        UnsupportedSchema: it was written by a version that this one does not know.
        BundleDamaged: it is not JSON, or a field is missing, unknown or of the wrong type.
    """
    try:
        document = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleDamaged(path=path, reason=f"{MANIFEST_NAME} is not JSON: {error}") from error
    found = document.get("schema_version") if isinstance(document, dict) else None
    if found != SCHEMA_VERSION:
        raise UnsupportedSchema(path=path, found=found, supported=SCHEMA_VERSION)
    try:
        manifest = msgspec.convert(document, Manifest)
    except msgspec.ValidationError as error:
        raise BundleDamaged(path=path, reason=f"{MANIFEST_NAME} does not fit its schema: {error}") from error
    _check_references(manifest, path=path)
    return manifest


def _check_references(manifest: Manifest, *, path: str) -> None:
    """Check that every name and path in the manifest leads to something in it."""
    names = [variant.name for variant in manifest.variants]
    if manifest.default_variant not in names or len(set(names)) != len(names):
        raise BundleDamaged(
            path=path,
            reason=f"the default variant '{manifest.default_variant}' is not one of {names}, each once",
        )
    for variant in manifest.variants:
        _check_exact_sizes(variant, path=path)
    paths = [variant.path for variant in manifest.variants]
    paths += [variant.golden.path for variant in manifest.variants]
    for member in (*paths, manifest.golden_inputs):
        if member not in manifest.files:
            raise BundleDamaged(path=path, reason=f"'{member}' is used but not listed under 'files'")


def _check_exact_sizes(variant: BundledVariant, *, path: str) -> None:
    """Check that the sizes to pad to are there if and only if the verdict speaks of them."""
    sizes = variant.exact_batch_sizes
    is_fixed = variant.invariance is BatchInvariance.FIXED_SHAPES
    is_increasing = list(sizes) == sorted(set(sizes)) and all(size > 0 for size in sizes)
    if not is_increasing or is_fixed != bool(sizes):
        raise BundleDamaged(
            path=path,
            reason=f"the variant '{variant.name}' is {variant.invariance.value} with the exact batch sizes "
            f"{list(sizes)}; {BatchInvariance.FIXED_SHAPES.value} needs some, in increasing order, and no other does",
        )
