"""ONNX files whose weights are in files of any name beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import forwardpass
from forwardpass.core.variants import BatchInvariance, Format, Precision, Variant
from forwardpass.errors import InvalidModel
from forwardpass.predict import PackingList, VariantToPack, pack_bundle
from forwardpass.profile import measuring
from forwardpass.runtimes import RuntimeOptions, companions, open_runtime
from tests.models import MACHINE, mlp_calls, write_mlp


def external(folder: Path, *, single: bool) -> Path:
    """Write a model whose weights are in `weights.bin`, or each tensor in a file of its own."""
    model = onnx.load(str(write_mlp(folder / "plain.onnx")))
    (folder / "plain.onnx").unlink()
    path = folder / "model.onnx"
    onnx.save_model(
        model,
        str(path),
        save_as_external_data=True,
        size_threshold=0,
        all_tensors_to_one_file=single,
        location="weights.bin" if single else None,
    )
    return path


def at(path: Path) -> Variant:
    return Variant(name="fp32", format=Format.ONNX, precision=Precision.FP32, location=str(path))


@pytest.mark.parametrize("single", [True, False])
def test_they_travel_and_count_with_the_model(single: bool, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    path = external(tmp_path / "made", single=single)
    beside = {file for file in path.parent.iterdir() if file != path}
    found = companions(Format.ONNX, path)
    assert set(found) == beside
    assert len(found) == 1 if single else len(found) > 1
    assert measuring._file_bytes(at(path)) == sum(file.stat().st_size for file in path.parent.iterdir())
    expected = open_runtime(Format.ONNX, str(path), options=RuntimeOptions()).run(mlp_calls()[0])
    packed = VariantToPack(variant=at(path), invariance=BatchInvariance.BITWISE)
    pack_bundle(
        tmp_path / "bundle",
        PackingList(name="mlp", variants=[packed], golden_inputs=mlp_calls(), machine=MACHINE),
    )
    for file in path.parent.iterdir():
        file.unlink()
    answers = forwardpass.load(tmp_path / "bundle").predict(mlp_calls()[0])
    for name, array in expected.items():
        np.testing.assert_array_equal(answers[name], array)


def test_in_a_cache_of_links_the_model_takes_its_weights_along(tmp_path: Path) -> None:
    """As the Hugging Face hub lays it out: the files are named by their hashes, the names are links to them."""
    snapshot, blobs = tmp_path / "snapshots" / "1", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    path = external(snapshot, single=True)
    for number, file in enumerate(sorted(snapshot.iterdir())):
        file.rename(blobs / str(number))
        file.symlink_to(Path("../../blobs") / str(number))
    assert companions(Format.ONNX, path) == (snapshot / "weights.bin",)
    expected = open_runtime(Format.ONNX, str(path), options=RuntimeOptions()).run(mlp_calls()[0])
    packed = VariantToPack(variant=at(path), invariance=BatchInvariance.BITWISE)
    pack_bundle(
        tmp_path / "bundle",
        PackingList(name="mlp", variants=[packed], golden_inputs=mlp_calls(), machine=MACHINE),
    )
    assert not any(file.is_symlink() for file in (tmp_path / "bundle").rglob("*"))
    answers = forwardpass.load(tmp_path / "bundle").predict(mlp_calls()[0])
    np.testing.assert_array_equal(answers["scores"], expected["scores"])


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/hostname", "link.bin"])
def test_weights_outside_of_the_folder_are_refused(location: str, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "weights.bin").write_bytes(bytes(100_000))
    (tmp_path / "made" / "link.bin").symlink_to(tmp_path / "weights.bin")
    path = external(tmp_path / "made", single=True)
    model = onnx.load(str(path), load_external_data=False)
    for entry in (entry for tensor in model.graph.initializer for entry in tensor.external_data):
        entry.value = location if entry.key == "location" else entry.value
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InvalidModel) as caught:
        companions(Format.ONNX, path)
    assert f"its weights are in '{location}', outside of its folder" in str(caught.value)


def test_a_model_that_keeps_its_weights_inside_needs_no_other_file(tmp_path: Path) -> None:
    assert companions(Format.ONNX, write_mlp(tmp_path / "mlp.onnx")) == ()


@given(content=st.binary(max_size=200), cut=st.integers(0, 400))
def test_what_is_broken_has_none(content: bytes, cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("broken")
    path = write_mlp(folder / "mlp.onnx")
    path.write_bytes(path.read_bytes()[:cut] + content)
    assert companions(Format.ONNX, path) == ()
