"""Opening a bundle: nothing of it is used before every file has been checked."""

from __future__ import annotations

import hashlib
import io
import os
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from forwardpass.bundle.manifest import MANIFEST_NAME, BundledVariant, FileRecord, Manifest, decode_manifest
from forwardpass.bundle.paths import check_member_name, list_members, open_member
from forwardpass.core.archives import read_calls
from forwardpass.core.tensors import Array, Signature
from forwardpass.errors import BundleDamaged, BundleNotFound, InvalidOption

__all__ = [
    "Bundle",
    "GoldenCall",
    "check_variant",
    "has_versions",
    "is_bundle",
    "open_bundle",
    "read_name",
    "versions_in",
]

VERSION_NUMBER = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)
MAX_MANIFEST_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GoldenCall:
    """Inputs of one call and the answer that a variant gave when the bundle was built."""

    inputs: dict[str, Array]
    outputs: dict[str, Array]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bundle:
    """A checked bundle on disk."""

    path: Path
    manifest: Manifest
    digest: str
    """SHA-256 of the manifest, and so, through the hashes in it, of everything."""

    @property
    def name(self) -> str:
        """The model's name."""
        return self.manifest.name

    @property
    def signature(self) -> Signature:
        """Inputs and outputs, the same for all variants."""
        return self.manifest.signature

    def variant(self, name: str | None = None) -> BundledVariant:
        """Return the named variant, or the default one.

        Raises:
            InvalidOption: there is no variant of this name.
        """
        return _variant_of(self.manifest, name)

    def variant_bytes(self, variant: BundledVariant) -> int:
        """Return how large a variant's files are, weights beside the model included."""
        folder = variant.path.rpartition("/")[0]
        within = f"{folder}/" if folder else variant.path
        return sum(record.size_bytes for member, record in self.manifest.files.items() if member.startswith(within))

    def locate(self, member: str) -> Path:
        """Return the path of a listed file or folder."""
        return self.path / member

    def read(self, member: str) -> bytes:
        """Read a listed file."""
        with os.fdopen(open_member(self.path, member), "rb") as file:
            return file.read()

    def golden_calls(self, variant: BundledVariant) -> list[GoldenCall]:
        """Return the golden inputs with the outputs of `variant`.

        Raises:
            BundleDamaged: the arrays do not belong together.
        """
        inputs = self._read_calls(self.manifest.golden_inputs)
        outputs = self._read_calls(variant.golden.path)
        if len(inputs) != len(outputs) or not inputs:
            raise BundleDamaged(path=str(self.path), reason=f"{len(inputs)} golden inputs, {len(outputs)} outputs")
        return [GoldenCall(inputs=given, outputs=got) for given, got in zip(inputs, outputs, strict=True)]

    def _read_calls(self, member: str) -> list[dict[str, Array]]:
        try:
            return read_calls(io.BytesIO(self.read(member)))
        except (ValueError, zipfile.BadZipFile) as error:
            raise BundleDamaged(path=str(self.path), reason=f"'{member}' is not a readable .npz: {error}") from error


def is_bundle(path: Path) -> bool:
    """Tell whether `path` looks like a bundle, damaged or not."""
    return (path / MANIFEST_NAME).is_file()


def versions_in(folder: Path) -> dict[str, Path]:
    """Return the bundles in subfolders that are named 1, 2, 3 …"""
    if not folder.is_dir():
        return {}
    return {path.name: path for path in folder.iterdir() if VERSION_NUMBER.fullmatch(path.name) and is_bundle(path)}


def has_versions(folder: Path) -> bool:
    """Tell whether `folder` is a folder of versions and not itself a bundle."""
    return not is_bundle(folder) and bool(versions_in(folder))


def open_bundle(path: Path | str) -> Bundle:
    """Open a bundle and check every file of it against the manifest.

    Raises:
        BundleNotFound: there is no manifest.
        UnsupportedSchema: the manifest is of an unknown version.
        UnsafePath: a file is a link, or a path leaves the folder.
        BundleDamaged: a file is missing, altered or undeclared, or the manifest does not fit its schema.
    """
    root = Path(path).absolute()
    text = _read_manifest(root, path)
    manifest = decode_manifest(text, path=str(path))
    for member in manifest.files:
        check_member_name(member, bundle=str(path))
    undeclared = sorted(set(list_members(root)) - set(manifest.files) - {MANIFEST_NAME})
    if undeclared:
        raise BundleDamaged(path=str(path), reason=f"the file '{undeclared[0]}' is not listed in {MANIFEST_NAME}")
    for member, record in manifest.files.items():
        _check_content(root, member, record)
    return Bundle(path=root, manifest=manifest, digest=hashlib.sha256(text).hexdigest())


def read_name(path: Path | str) -> str:
    """Return the model's name that a bundle gives, without checking its files.

    Raises:
        BundleError: there is no manifest, or it cannot be used.
    """
    return decode_manifest(_read_manifest(Path(path).absolute(), path), path=str(path)).name


def check_variant(path: Path | str, name: str) -> None:
    """Raise `InvalidOption` if a bundle has no variant of this name; its files are not checked.

    Raises:
        BundleError: there is no manifest, or it cannot be used.
    """
    _variant_of(decode_manifest(_read_manifest(Path(path).absolute(), path), path=str(path)), name)


def _variant_of(manifest: Manifest, name: str | None) -> BundledVariant:
    wanted = manifest.default_variant if name is None else name
    for variant in manifest.variants:
        if variant.name == wanted:
            return variant
    names = ", ".join(variant.name for variant in manifest.variants)
    raise InvalidOption(option="--variant", value=wanted, expected=f"one of {names}")


def _read_manifest(root: Path, shown: Path | str) -> bytes:
    if not is_bundle(root):
        raise BundleNotFound(path=str(shown))
    with os.fdopen(open_member(root, MANIFEST_NAME), "rb") as file:
        text = file.read(MAX_MANIFEST_BYTES + 1)
    if len(text) > MAX_MANIFEST_BYTES:
        raise BundleDamaged(path=str(shown), reason=f"{MANIFEST_NAME} is over {MAX_MANIFEST_BYTES} bytes")
    return text


def _check_content(root: Path, member: str, record: FileRecord) -> None:
    with os.fdopen(open_member(root, member), "rb") as file:
        if os.fstat(file.fileno()).st_size != record.size_bytes:
            raise BundleDamaged(path=str(root), reason=f"the size of '{member}' is not {record.size_bytes} bytes")
        if hashlib.file_digest(file, "sha256").hexdigest() != record.sha256:
            raise BundleDamaged(path=str(root), reason=f"the content of '{member}' has changed (SHA-256 differs)")
