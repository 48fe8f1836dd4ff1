"""The bundle: a folder with the variants of a model and the proof that stands behind them.

The format is documented in `docs/reference/bundle-format.md`. This package reads and writes it; it neither runs a
model nor knows a runtime.
"""

from forwardpass.bundle.manifest import (
    SCHEMA_VERSION,
    BundledVariant,
    FileRecord,
    GoldenRecord,
    Manifest,
    PaddingRecord,
    ProcessorRecord,
)
from forwardpass.bundle.reader import (
    Bundle,
    GoldenCall,
    check_variant,
    has_versions,
    is_bundle,
    open_bundle,
    read_name,
    versions_in,
)
from forwardpass.bundle.writer import BundleWriter, check_destination

__all__ = [
    "SCHEMA_VERSION",
    "Bundle",
    "BundleWriter",
    "BundledVariant",
    "FileRecord",
    "GoldenCall",
    "GoldenRecord",
    "Manifest",
    "PaddingRecord",
    "ProcessorRecord",
    "check_destination",
    "check_variant",
    "has_versions",
    "is_bundle",
    "open_bundle",
    "read_name",
    "versions_in",
]
