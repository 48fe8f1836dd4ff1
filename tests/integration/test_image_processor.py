"""Pictures become the tensors that foreign code makes of them, and nothing that a stranger sends breaks it."""

from __future__ import annotations

import io
import json
import re
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import forwardpass
from forwardpass.core.tensors import Array, Signature, TensorSpec
from forwardpass.core.uploads import Upload
from forwardpass.errors import InvalidOption, MalformedRequest, MissingExtra, SourceNotFound
from forwardpass.processors import open_processor
from forwardpass.processors.image import ImageClassifier
from tests.models import write_image_bundle

GENERATOR = np.random.default_rng(11)


def classifier(folder: Path, **given_settings: object) -> ImageClassifier:
    (folder / "image.json").write_text(json.dumps(given_settings))
    processor = open_processor("image-classifier", folder)
    assert isinstance(processor, ImageClassifier)
    return processor


def encoded(pixels: Array, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def prepared(processor: ImageClassifier, content: bytes) -> Array:
    (array,) = processor.encode({"image": Upload(content=content, media_type="image/png")}).values()
    return array[0]


def smooth(height: int, width: int) -> Array:
    """A picture without single bright pixels, as photographs are."""
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin(rows / 9 + shift) * np.cos(columns / 7 - shift) for shift in (0.0, 1.0, 2.0)]
    return (127.5 + 120 * np.stack(waves, axis=-1)).astype(np.uint8)


@pytest.mark.parametrize(("height", "width"), [(300, 400), (400, 300), (97, 211), (64, 64)])
def test_shortest_edge_crop_and_normalisation_agree_with_torch(tmp_path: Path, height: int, width: int) -> None:
    import torch

    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    processor = classifier(tmp_path, height=56, width=56, resize=64, mean=mean, std=std)
    pixels = smooth(height, width)

    short = min(height, width)
    size = (int(64 * height / short), int(64 * width / short))
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    resized = torch.nn.functional.interpolate(planes, size, mode="bilinear", antialias=True, align_corners=False)
    top, left = round((size[0] - 56) / 2), round((size[1] - 56) / 2)
    cut = resized[0, :, top : top + 56, left : left + 56] / 255
    right = ((cut - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]).numpy()

    ours = prepared(processor, encoded(pixels))
    assert ours.dtype == np.float32
    # Pillow rounds to whole levels after either axis: two halves of a level, in units of the smallest deviation.
    assert np.abs(ours - right).max() <= 1.01 / 255 / 0.224


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("colour", ["rgb", "bgr", "grey"])
def test_layout_and_colour_of_a_picture_that_has_its_size_already(tmp_path: Path, layout: str, colour: str) -> None:
    pixels = GENERATOR.integers(0, 256, (6, 5, 3), dtype=np.uint8)
    processor = classifier(tmp_path, height=6, width=5, layout=layout, colour=colour, dtype="uint8")
    weights = np.array([299, 587, 114]) / 1000
    right = {"rgb": pixels, "bgr": pixels[..., ::-1], "grey": (pixels @ weights)[..., None]}[colour]
    ours = prepared(processor, encoded(pixels))
    if layout == "nchw":
        ours = ours.transpose(1, 2, 0)
    assert np.abs(ours.astype(float) - right).max() <= (0.51 if colour == "grey" else 0)


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_the_orientation_that_a_camera_noted_is_applied(tmp_path: Path, orientation: int) -> None:
    pixels = GENERATOR.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    processor = classifier(tmp_path, height=4, width=4, layout="nhwc", dtype="uint8")
    ours = prepared(processor, encoded(pixels, exif=exif))
    np.testing.assert_array_equal(ours, UPRIGHT[orientation](pixels))


def test_sixteen_bits_of_grey_are_scaled_and_not_cut_off(tmp_path: Path) -> None:
    levels = np.array([[0, 256], [32768, 65535]], np.uint16)
    processor = classifier(tmp_path, height=2, width=2, colour="grey", layout="nhwc", dtype="uint8")
    np.testing.assert_array_equal(prepared(processor, encoded(levels))[..., 0], [[0, 1], [128, 255]])


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(8000, 7000), (12_000, 8_000), (60_000, 60_000)])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path, size: tuple[int, int]) -> None:
    with pytest.raises(MalformedRequest, match=r"the image has .* pixels"):
        prepared(classifier(tmp_path), png_that_claims(*size))


def test_a_thread_of_a_picture_is_not_blown_up_by_resizing(tmp_path: Path) -> None:
    with pytest.raises(MalformedRequest, match="too narrow to be resized"):
        prepared(classifier(tmp_path), encoded(np.zeros((1, 60_000, 3), np.uint8)))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_pictures_are_the_clients_mistake(tmp_path: Path, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "BMP"]))
    content = bytearray(encoded(smooth(16, 16), kind))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = content[: data.draw(st.integers(0, len(content)))]
    try:
        array = prepared(classifier(tmp_path, height=8, width=8), bytes(cut))
    except MalformedRequest:
        return
    assert array.shape == (3, 8, 8)


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    with pytest.raises(MalformedRequest, match="the file is not an image of JPEG, PNG, WEBP, GIF, BMP"):
        prepared(classifier(tmp_path), b"%!PS-Adobe-3.0 EPSF-3.0")


def test_the_best_labels_come_first_with_the_probabilities_of_torch(tmp_path: Path) -> None:
    import torch

    processor = classifier(tmp_path, labels=["a", "b", "c"], top_k=2)
    scores = np.array([[1.0, 3.0, 2.0], [0.0, 0.0, 900.0]], np.float32)
    right = torch.softmax(torch.from_numpy(scores).double(), dim=1)
    predictions: Any = processor.decode({"scores": scores})["predictions"]
    first, second = predictions
    assert [entry["label"] for entry in first] == ["b", "c"]
    assert first[0]["score"] == pytest.approx(float(right[0, 1]))
    assert second[0] == {"index": 2, "label": "c", "score": 1.0}
    assert [event["image"] for event in processor.stream({"scores": scores})] == [0, 1]


@pytest.mark.parametrize(
    ("given_settings", "said"),
    [
        ({"heigth": 3}, "unknown field `heigth`"),
        ({"std": [0.0]}, "expected no 0"),
        ({"mean": [1.0, 2.0]}, "expected 1 or 3 numbers"),
        ({"resize": 100}, "at least 224"),
        ({"dtype": "int4"}, "float32, float16 or uint8"),
    ],
)
def test_settings_that_contradict_each_other_are_told_at_load(
    tmp_path: Path, given_settings: dict[str, object], said: str
) -> None:
    with pytest.raises(InvalidOption, match=said):
        classifier(tmp_path, **given_settings)


def test_a_missing_package_or_file_is_told_at_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceNotFound, match=r"image\.json"):
        open_processor("image-classifier", tmp_path)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(MissingExtra, match=r"pip install 'forwardpass\[image\]'"):
        open_processor("image-classifier", tmp_path)


def fitting(shape: tuple[int | str, ...], *, name: str = "pixels", dtype: str = "float32") -> Signature:
    scores = TensorSpec(name="scores", dtype="float32", shape=("batch", 3))
    return Signature(inputs=(TensorSpec(name=name, dtype=dtype, shape=shape),), outputs=(scores,))


@pytest.mark.parametrize(
    ("signature", "said"),
    [
        (fitting(("batch", 3, 9, 8)), ""),
        (fitting((1, 3, "height", "width")), ""),
        (fitting(("batch", 3, 9, 8), name="x"), "one for a model with the inputs x; it makes pixels"),
        (fitting(("batch", 9, 8, 3)), "it makes float32[images, 3, 9, 8]: axis 1 differs"),
        (fitting(("batch", 3, 9, 8), dtype="uint8"), "the dtypes differ"),
        (fitting(("batch", 216)), "4 axes are not 2"),
    ],
)
def test_a_model_that_does_not_fit_is_told_at_load(tmp_path: Path, signature: Signature, said: str) -> None:
    (tmp_path / "image.json").write_text('{"height": 9, "width": 8}')
    if not said:
        open_processor("image-classifier", tmp_path, signature)
        return
    with pytest.raises(InvalidOption, match=re.escape(said)):
        open_processor("image-classifier", tmp_path, signature)


def test_an_output_that_the_model_does_not_have_is_told_at_load(tmp_path: Path) -> None:
    (tmp_path / "image.json").write_text('{"height": 9, "width": 8, "output": "logits"}')
    with pytest.raises(InvalidOption, match=r"an output of the model \(scores\), not 'logits'"):
        open_processor("image-classifier", tmp_path, fitting(("batch", 3, 9, 8)))


def test_a_bundle_answers_in_this_process_too(tmp_path: Path) -> None:
    bundle = write_image_bundle(tmp_path / "colours")
    red = np.zeros((20, 30, 3), np.uint8)
    red[..., 0] = 200
    predictions: Any = forwardpass.load(bundle).ask(image=encoded(red))["predictions"]
    assert predictions[0][0]["label"] == "red"
