"""Pictures in, labels out: the processor of image classifiers.

A picture comes from a stranger. Its size is looked at before any pixel of it is decoded, only formats of the web are
opened, and whatever the decoder finds wrong is the client's mistake.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import msgspec
import numpy as np

from forwardpass.core.tensors import Array, Tensors, TensorSpec
from forwardpass.core.uploads import Upload
from forwardpass.errors import InvalidOption, MalformedRequest, MissingExtra
from forwardpass.processors.ranking import Activation, rank
from forwardpass.processors.uploads import read_settings, uploads_of

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ImageClassifier"]

FILE_NAME = "image.json"
MAX_IMAGES = 64
FORMATS = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "BMP": "image/bmp",
}
MAX_SIDE = 16_384
_Side = Annotated[int, msgspec.Meta(ge=1, le=MAX_SIDE)]


class Fit(StrEnum):
    """How a picture comes to its size: its shorter side is made to fit, or both are, whatever becomes of its shape."""

    SHORTEST_EDGE = "shortest-edge"
    STRETCH = "stretch"


class Resample(StrEnum):
    """How pixels are interpolated; all but `nearest` average over what becomes smaller."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


class Colour(StrEnum):
    """Channels and their order."""

    RGB = "rgb"
    BGR = "bgr"
    GREY = "grey"


class Layout(StrEnum):
    """The order of axes behind the batch axis."""

    NCHW = "nchw"
    NHWC = "nhwc"


class ImageSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How pictures were prepared when the model was trained; the defaults are those of most models for ImageNet.

    A pixel becomes `(value * scale - mean) / std`, where `value` is 0 to 255.
    """

    height: _Side = 224
    width: _Side = 224
    resize: _Side | None = None
    """Length of the shorter side before the centre is cut out; without it just what is needed."""
    fit: Fit = Fit.SHORTEST_EDGE
    resample: Resample = Resample.BILINEAR
    colour: Colour = Colour.RGB
    layout: Layout = Layout.NCHW
    dtype: str = "float32"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    input: str = "pixels"
    output: str | None = None
    """The output with the scores; without it the first."""
    labels: tuple[str, ...] = ()
    top_k: Annotated[int, msgspec.Meta(ge=1)] = 5
    activation: Activation = Activation.SOFTMAX
    max_pixels: Annotated[int, msgspec.Meta(ge=1)] = 50_000_000
    """Larger pictures are refused before they are decoded: a small file can hold gigabytes of one colour."""

    @property
    def num_channels(self) -> int:
        """Channels of a prepared picture."""
        return 1 if self.colour is Colour.GREY else 3


class ImageClassifier:
    """Takes files as `image` and returns `{"predictions": [[{"index", "score", "label"}, …], …]}`, a list a picture.

    It serves models with one input of pictures of one size and an output `[batch, classes]`. The bundle's `image.json`
    says how pictures are prepared. The orientation that a camera noted is applied; of animations the first picture is
    taken; transparency is dropped.
    """

    files: ClassVar[tuple[str, ...]] = (FILE_NAME,)
    file_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {"image": tuple(FORMATS.values())}

    def __init__(self, folder: Path) -> None:
        try:
            import PIL.Image
        except ImportError as error:
            raise MissingExtra(package="pillow", extra="image", purpose="reading images") from error
        self._settings = settings = read_settings(folder / FILE_NAME, ImageSettings)
        _check(settings)
        self._filter = PIL.Image.Resampling[settings.resample.name]
        self._mean = np.array(settings.mean, np.float32)
        self._std = np.array(settings.std, np.float32)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The prepared pictures."""
        settings = self._settings
        height, width, channels = settings.height, settings.width, settings.num_channels
        axes = (channels, height, width) if settings.layout is Layout.NCHW else (height, width, channels)
        return (TensorSpec(name=settings.input, dtype=settings.dtype, shape=("images", *axes)),)

    @property
    def output(self) -> str | None:
        """The scores."""
        return self._settings.output

    def encode(self, request: Mapping[str, object]) -> dict[str, Array]:
        """Decode and prepare one picture or several."""
        uploads = uploads_of(request, "image", max_files=MAX_IMAGES)
        return {self._settings.input: np.stack([self._prepare(upload) for upload in uploads])}

    def decode(self, outputs: Tensors) -> Mapping[str, object]:
        """Return the best classes of every picture."""
        return {"predictions": [self._rank(row) for row in self._scores(outputs)]}

    def stream(self, outputs: Tensors) -> Iterator[Mapping[str, object]]:
        """Return the best classes of one picture after the other."""
        for index, row in enumerate(self._scores(outputs)):
            yield {"image": index, "predictions": self._rank(row)}

    def _scores(self, outputs: Tensors) -> Array:
        return outputs[self._settings.output] if self._settings.output else next(iter(outputs.values()))

    def _rank(self, row: Array) -> list[dict[str, object]]:
        settings = self._settings
        return rank(row, settings.labels, top_k=settings.top_k, activation=settings.activation)

    def _prepare(self, upload: Upload) -> Array:
        settings = self._settings
        image = _crop(_resize(self._open(upload), settings, self._filter), settings)
        pixels = np.asarray(image)
        if settings.colour is Colour.GREY:
            pixels = pixels[:, :, np.newaxis]
        elif settings.colour is Colour.BGR:
            pixels = pixels[:, :, ::-1]
        if settings.dtype != "uint8":
            pixels = (pixels * np.float32(settings.scale) - self._mean) / self._std
        if settings.layout is Layout.NCHW:
            pixels = pixels.transpose(2, 0, 1)
        return np.ascontiguousarray(pixels, dtype=settings.dtype)

    def _open(self, upload: Upload) -> Image:
        """Decode a picture, upright and in the colours that are wanted."""
        import PIL.Image
        import PIL.ImageOps

        limit = self._settings.max_pixels
        try:
            image = PIL.Image.open(io.BytesIO(upload.content), formats=tuple(FORMATS))
            _check_size(*image.size, limit)
            return _in_colours(PIL.ImageOps.exif_transpose(image), self._settings.colour)
        except MalformedRequest:
            raise
        except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
            raise MalformedRequest(reason=f"the image has more pixels than the limit of {limit}") from error
        except PIL.UnidentifiedImageError as error:
            raise MalformedRequest(reason=f"the file is not an image of {', '.join(FORMATS)}") from error
        except Exception as error:  # decoders of foreign bytes raise nearly anything: OSError, SyntaxError, KeyError …
            raise MalformedRequest(reason="the image is damaged or cut off") from error


def _check_size(width: int, height: int, limit: int) -> None:
    if width * height > limit:
        raise MalformedRequest(reason=f"the image has {width} x {height} pixels; the limit is {limit} in all")


def _check(settings: ImageSettings) -> None:
    """Refuse settings that contradict each other."""
    for name, values in (("mean", settings.mean), ("std", settings.std)):
        if len(values) not in (1, settings.num_channels):
            expected = f"1 or {settings.num_channels} numbers"
            raise InvalidOption(option=f"{FILE_NAME}: {name}", value=str(list(values)), expected=expected)
    if not all(settings.std):
        raise InvalidOption(option=f"{FILE_NAME}: std", value=str(list(settings.std)), expected="no 0")
    if settings.dtype not in ("float32", "float16", "uint8"):
        raise InvalidOption(option=f"{FILE_NAME}: dtype", value=settings.dtype, expected="float32, float16 or uint8")
    if settings.resize is not None and settings.resize < max(settings.height, settings.width):
        expected = f"at least {max(settings.height, settings.width)}, the size that is cut out"
        raise InvalidOption(option=f"{FILE_NAME}: resize", value=str(settings.resize), expected=expected)


def _in_colours(image: Image, colour: Colour) -> Image:
    if image.mode.startswith("I"):  # 16 bits of grey; Pillow would cut them off at 255
        image = _from_16_bits(image)
    return image.convert("L" if colour is Colour.GREY else "RGB")


def _from_16_bits(image: Image) -> Image:
    import PIL.Image

    return PIL.Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))


def _resize(image: Image, settings: ImageSettings, resample: int) -> Image:
    """Scale so that at least the size that is cut out is there."""
    width, height = image.size
    if settings.fit is Fit.STRETCH:
        side = settings.resize
        size = (side, side) if side else (settings.width, settings.height)
    elif settings.resize is not None:
        size = _shortest(width, height, settings.resize)
    else:
        factor = max(settings.width / width, settings.height / height)
        size = (max(round(width * factor), settings.width), max(round(height * factor), settings.height))
    if size[0] * size[1] > settings.max_pixels:
        raise MalformedRequest(reason=f"the image of {width} x {height} pixels is too narrow to be resized")
    return image.resize(size, resample=resample)


def _shortest(width: int, height: int, side: int) -> tuple[int, int]:
    """Return the size whose shorter side is `side`; the other is rounded down, as torchvision does."""
    if width <= height:
        return side, int(side * height / width)
    return int(side * width / height), side


def _crop(image: Image, settings: ImageSettings) -> Image:
    """Cut out the centre, at the place where torchvision does."""
    left = round((image.width - settings.width) / 2)
    top = round((image.height - settings.height) / 2)
    return image.crop((left, top, left + settings.width, top + settings.height))
