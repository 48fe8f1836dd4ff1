"""Sound in: the processor of models that take a waveform.

The header is looked at before any sample is decoded, and no more samples are decoded than the limit allows.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import msgspec
import numpy as np

from forwardpass.core.tensors import Array, Tensors, TensorSpec
from forwardpass.core.uploads import Upload
from forwardpass.errors import MalformedRequest, MissingExtra
from forwardpass.processors.ranking import Activation, rank
from forwardpass.processors.uploads import read_settings, uploads_of

if TYPE_CHECKING:
    import soundfile

__all__ = ["Waveform"]

FILE_NAME = "waveform.json"
MAX_FILES = 32
MAX_CHANNELS = 8
MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 192_000
BLOCK_FRAMES = 65_536
"""Mixed to mono at once: a small file can hold minutes of silence in eight channels."""
CONTAINERS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG")
MEDIA_TYPES = (
    "audio/wav",
    "audio/x-wav",
    "audio/wave",
    "audio/vnd.wave",
    "audio/flac",
    "audio/x-flac",
    "audio/ogg",
    "application/ogg",
)
"""What WAV, FLAC and OGG are called by curl, browsers and the registry."""
LEAST_POWER = 1e-7
"""Added to the variance, so that silence is not divided by nothing; the value is that of wav2vec 2.0."""


class Normalise(StrEnum):
    """What is done to the volume."""

    NONE = "none"
    ZERO_MEAN_UNIT_VARIANCE = "zero-mean-unit-variance"


class WaveformSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the model expects. `lengths` names an int64 input `[batch]` for the number of samples of each file."""

    rate_hz: Annotated[int, msgspec.Meta(ge=MIN_RATE_HZ, le=MAX_RATE_HZ)] = 16_000
    max_duration_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 60.0
    normalise: Normalise = Normalise.NONE
    input: str = "waveform"
    lengths: str | None = None
    output: str | None = None
    """The output with the scores of classes; without it the first."""
    labels: tuple[str, ...] = ()
    """With labels the answer is the best of them, as for images; without them it is all outputs as lists."""
    top_k: Annotated[int, msgspec.Meta(ge=1)] = 5
    activation: Activation = Activation.SOFTMAX


class Waveform:
    """Takes files as `audio` (WAV, FLAC, OGG): mono float32 in -1 to 1 at the rate of the model, `[batch, samples]`.

    Channels are averaged. Several files of one request are padded with zeros at their end, for which the model needs an
    input of lengths; without one a request holds one file. The bundle's `waveform.json` says what the model expects.
    """

    files: ClassVar[tuple[str, ...]] = (FILE_NAME,)
    file_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {"audio": MEDIA_TYPES}

    def __init__(self, folder: Path) -> None:
        try:
            import soundfile
            import soxr
        except (ImportError, OSError) as error:  # soundfile raises OSError where libsndfile is missing
            raise MissingExtra(package="soundfile", extra="audio", purpose="reading sound") from error
        self._soundfile, self._soxr = soundfile, soxr
        self._settings = read_settings(folder / FILE_NAME, WaveformSettings)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The waves, and how long they are if the model wants to know."""
        settings = self._settings
        waves = TensorSpec(name=settings.input, dtype="float32", shape=("files", "samples"))
        if settings.lengths is None:
            return (waves,)
        return (waves, TensorSpec(name=settings.lengths, dtype="int64", shape=("files",)))

    @property
    def output(self) -> str | None:
        """The scores of the labels."""
        return self._settings.output

    def encode(self, request: Mapping[str, object]) -> dict[str, Array]:
        """Decode, mix and resample one file or several."""
        settings = self._settings
        uploads = uploads_of(request, "audio", max_files=MAX_FILES if settings.lengths else 1)
        waves = [self._read(upload) for upload in uploads]
        padded = np.zeros((len(waves), max(map(len, waves))), np.float32)
        for row, wave in zip(padded, waves, strict=True):
            row[: len(wave)] = wave
        lengths = np.array([len(wave) for wave in waves], np.int64)
        return {settings.input: padded} | ({settings.lengths: lengths} if settings.lengths else {})

    def decode(self, outputs: Tensors) -> Mapping[str, object]:
        """Return the best labels of every file, or every output as a list."""
        settings = self._settings
        if not settings.labels:
            return {"outputs": {name: array.tolist() for name, array in outputs.items()}}
        scores = outputs[settings.output] if settings.output else next(iter(outputs.values()))
        return {
            "predictions": [
                rank(row, settings.labels, top_k=settings.top_k, activation=settings.activation) for row in scores
            ]
        }

    def _read(self, upload: Upload) -> Array:
        try:
            with self._soundfile.SoundFile(io.BytesIO(upload.content)) as file:
                mono, rate_hz = self._decode(file), file.samplerate
        except MalformedRequest:
            raise
        except Exception as error:  # libsndfile's own errors, and what its wrapper makes of odd headers
            raise MalformedRequest(reason="the file is no sound in WAV, FLAC or OGG, or it is damaged") from error
        if not np.isfinite(mono).all():
            raise MalformedRequest(reason="the sound has samples that are no numbers")
        if rate_hz != self._settings.rate_hz:
            mono = self._soxr.resample(mono, rate_hz, self._settings.rate_hz, quality="VHQ")
        if not len(mono):
            raise MalformedRequest(reason="the sound is empty")
        return _normalised(mono, self._settings.normalise)

    def _decode(self, file: soundfile.SoundFile) -> Array:
        """Decode and mix up to the limit, once the header has shown nothing unreasonable."""
        limit_s = self._settings.max_duration_s
        if file.format not in CONTAINERS:
            raise MalformedRequest(reason=f"the sound is in the format {file.format}; expected WAV, FLAC or OGG")
        if file.channels > MAX_CHANNELS:
            raise MalformedRequest(reason=f"the sound has {file.channels} channels; the limit is {MAX_CHANNELS}")
        if not MIN_RATE_HZ <= file.samplerate <= MAX_RATE_HZ:
            reason = f"the sound has {file.samplerate} samples per second; expected {MIN_RATE_HZ} to {MAX_RATE_HZ}"
            raise MalformedRequest(reason=reason)
        blocks: list[Array] = []
        num_left = int(limit_s * file.samplerate)
        while len(block := file.read(BLOCK_FRAMES, dtype="float32", always_2d=True)):
            num_left -= len(block)
            if num_left < 0:
                raise MalformedRequest(reason=f"the sound is longer than the limit of {limit_s:g} s")
            blocks.append(block.mean(axis=1, dtype=np.float32))
        return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def _normalised(mono: Array, normalise: Normalise) -> Array:
    if normalise is Normalise.NONE:
        return mono
    centred: Array = mono - mono.mean()
    return centred / np.sqrt(centred.var() + LEAST_POWER, dtype=np.float32)
