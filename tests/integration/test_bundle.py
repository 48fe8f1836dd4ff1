"""A bundle is whole and its own, or it does not open."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from forwardpass.bundle import BundleWriter, open_bundle
from forwardpass.errors import (
    BundleDamaged,
    BundleError,
    BundleNotFound,
    InvalidOption,
    StorageFailed,
    UnsafePath,
    UnsupportedSchema,
)
from tests.models import mlp_calls, write_bundle, write_mlp

MODEL = "variants/onnx-fp32/model.onnx"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle", write_mlp(tmp_path / "mlp.onnx"), mlp_calls())


def edit_manifest(bundle: Path, change: Callable[[dict[str, object]], object]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    change(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_a_written_bundle_opens_with_what_was_put_in(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert opened.name == "mlp"
    assert [spec.name for spec in opened.signature.inputs] == ["pixels"]
    calls = opened.golden_calls(opened.variant())
    np.testing.assert_array_equal(calls[1].inputs["pixels"], mlp_calls()[1]["pixels"])
    assert calls[1].outputs["scores"].shape == (2, 10)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def as_symlink(path: Path) -> None:
    elsewhere = path.parents[2].parent / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def as_hard_link(path: Path) -> None:
    os.link(path, path.parents[2].parent / "second-name")


def linked_folder(path: Path) -> None:
    elsewhere = path.parents[2].parent / "elsewhere"
    path.parent.rename(elsewhere)
    path.parent.symlink_to(elsewhere)


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (Path.unlink, BundleDamaged, f"the file '{MODEL}' is missing"),
        (truncate, BundleDamaged, f"the size of '{MODEL}' is not"),
        (flip, BundleDamaged, f"the content of '{MODEL}' has changed (SHA-256 differs)"),
        (as_symlink, UnsafePath, f"its file '{MODEL}' is a symbolic link"),
        (as_hard_link, UnsafePath, f"its file '{MODEL}' is a hard link"),
        (linked_folder, UnsafePath, "its file 'variants/onnx-fp32' is a symbolic link"),
        (lambda path: (path.parent / "more").write_text(""), BundleDamaged, "more' is not listed in manifest.json"),
        (lambda path: os.mkfifo(path.parent / "pipe"), UnsafePath, "pipe' is not a regular file"),
    ],
)
def test_a_file_that_is_not_what_was_written_is_refused(
    bundle: Path, damage: Callable[[Path], object], error: type[BundleError], words: str
) -> None:
    damage(bundle / MODEL)
    with pytest.raises(error) as caught:
        open_bundle(bundle)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "member", ["../mlp.onnx", "/etc/passwd", "variants/../../mlp.onnx", "a\\..\\b", "./golden", "x\0y"]
)
def test_a_path_that_leaves_the_folder_is_refused(bundle: Path, member: str) -> None:
    def add(manifest: dict[str, object]) -> None:
        files = manifest["files"]
        assert isinstance(files, dict)
        files[member] = files[MODEL]

    edit_manifest(bundle, add)
    with pytest.raises(UnsafePath):
        open_bundle(bundle)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (
            lambda m: m.update(schema_version=2),
            UnsupportedSchema,
            "has schema version 2, but this forwardpass reads version 1",
        ),
        (lambda m: m.pop("schema_version"), UnsupportedSchema, "has schema version None"),
        (lambda m: m.pop("name"), BundleDamaged, "missing required field `name`"),
        (lambda m: m.update(extra=1), BundleDamaged, "unknown field `extra`"),
        (lambda m: m.update(default_variant="other"), BundleDamaged, "the default variant 'other' is not one of"),
        (lambda m: m.update(golden_inputs="golden/none.npz"), BundleDamaged, "is used but not listed under 'files'"),
        (lambda m: m.update(variants="x"), BundleDamaged, "Expected `array`, got `str` - at `$.variants`"),
    ],
)
def test_a_manifest_that_does_not_fit_says_where(
    bundle: Path, change: Callable[[dict[str, object]], object], error: type[BundleError], words: str
) -> None:
    edit_manifest(bundle, change)
    with pytest.raises(error) as caught:
        open_bundle(bundle)
    assert words in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_a_manifest_that_is_no_manifest_is_an_error_of_ours(bundle: Path, text: bytes) -> None:
    (bundle / "manifest.json").write_bytes(text)
    with pytest.raises(BundleError):
        open_bundle(bundle)


def claim(invariance: str, sizes: list[int]) -> Callable[[dict[str, object]], object]:
    def change(manifest: dict[str, object]) -> None:
        manifest["variants"][0].update(invariance=invariance, exact_batch_sizes=sizes)  # type: ignore[index]

    return change


def test_exact_batch_sizes_are_kept_and_an_older_bundle_has_none(bundle: Path) -> None:
    edit_manifest(bundle, lambda m: m["variants"][0].pop("exact_batch_sizes"))  # type: ignore[index]
    assert open_bundle(bundle).variant().exact_batch_sizes == ()
    edit_manifest(bundle, claim("bitwise-fixed-shapes", [2, 4, 8]))
    assert open_bundle(bundle).variant().exact_batch_sizes == (2, 4, 8)


@pytest.mark.parametrize(
    ("invariance", "sizes"),
    [
        ("bitwise", [2, 4]),
        ("bitwise-fixed-shapes", []),
        ("bitwise-fixed-shapes", [4, 2]),
        ("bitwise-fixed-shapes", [0, 2]),
        ("bitwise-fixed-shapes", [2, 2]),
    ],
)
def test_sizes_that_do_not_fit_the_verdict_are_refused(bundle: Path, invariance: str, sizes: list[int]) -> None:
    edit_manifest(bundle, claim(invariance, sizes))
    with pytest.raises(BundleDamaged, match="exact batch sizes"):
        open_bundle(bundle)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFound, match=r"'forwardpass ship' makes one"):
        open_bundle(tmp_path)


def test_an_interrupted_writer_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), BundleWriter(tmp_path / "bundle") as writer:
        writer.add_bytes("a/b", b"half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_sentence_and_the_old_bundle_stays(bundle: Path) -> None:
    with pytest.raises(StorageFailed, match="No space left on device"), BundleWriter(bundle) as writer:
        writer.add_bytes("a", b"half")
        raise OSError(28, "No space left on device")
    assert open_bundle(bundle).name == "mlp"
    assert sorted(path.name for path in bundle.parent.iterdir()) == ["bundle", "mlp.onnx"]


def test_replacing_a_bundle_leaves_exactly_the_new_one(bundle: Path, tmp_path: Path) -> None:
    write_bundle(bundle, write_mlp(tmp_path / "other.onnx", seed=9), mlp_calls(), name="second")
    assert open_bundle(bundle).name == "second"
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("precious")
    with pytest.raises(InvalidOption, match="expected a new folder, or a bundle to replace"), BundleWriter(tmp_path):
        pass
    assert (tmp_path / "keep.txt").read_text() == "precious"
