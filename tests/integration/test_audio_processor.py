"""Sounds become the samples that foreign code reads, at the rate of the model."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io.wavfile
import scipy.signal
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forwardpass.core.tensors import Array
from forwardpass.core.uploads import Upload
from forwardpass.errors import MalformedRequest, MissingExtra
from forwardpass.processors import open_processor
from forwardpass.processors.audio import Waveform


def waveform(folder: Path, **given_settings: object) -> Waveform:
    (folder / "waveform.json").write_text(json.dumps(given_settings))
    processor = open_processor("waveform", folder)
    assert isinstance(processor, Waveform)
    return processor


def encoded(samples: Array, rate_hz: int, container: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, format=container, subtype=subtype)
    return file.getvalue()


def read(processor: Waveform, *contents: bytes) -> Array:
    return processor.encode({"audio": [Upload(content=content) for content in contents]})["waveform"]


def tone(rate_hz: int, *, seconds: float = 0.5, frequency_hz: float = 440.0) -> Array:
    return 0.5 * np.sin(2 * np.pi * frequency_hz * np.arange(int(seconds * rate_hz)) / rate_hz)


def test_sixteen_bit_stereo_is_what_scipy_reads_averaged(tmp_path: Path) -> None:
    stereo = (np.stack([tone(16_000), tone(16_000, frequency_hz=660)], axis=1) * 32767).astype(np.int16)
    file = io.BytesIO()
    scipy.io.wavfile.write(file, 16_000, stereo)
    ours = read(waveform(tmp_path), file.getvalue())
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours[0], stereo.astype(np.float64).mean(axis=1) / 32768, atol=1e-7)


@pytest.mark.parametrize(("container", "subtype"), [("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("WAV", "FLOAT")])
def test_other_containers_are_what_soundfile_reads(tmp_path: Path, container: str, subtype: str) -> None:
    content = encoded(tone(16_000), 16_000, container, subtype)
    right, _ = soundfile.read(io.BytesIO(content), dtype="float32")
    np.testing.assert_array_equal(read(waveform(tmp_path), content)[0], right)


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 44_100, 48_000])
def test_resampling_gives_the_tone_that_was_played(tmp_path: Path, rate_hz: int) -> None:
    ours = read(waveform(tmp_path), encoded(tone(rate_hz), rate_hz, subtype="FLOAT"))[0]
    right = tone(16_000)
    assert abs(len(ours) - len(right)) <= 1
    inside = slice(1_000, 7_000)  # at its ends every resampler guesses what came before and after
    assert np.abs(ours[inside] - right[inside]).max() < 1e-4


def test_resampling_agrees_with_scipy_and_lets_no_higher_tone_fold_back(tmp_path: Path) -> None:
    processor = waveform(tmp_path)
    noise = scipy.signal.lfilter(*scipy.signal.butter(6, 0.2), np.random.default_rng(2).standard_normal(48_000))
    ours = read(processor, encoded(noise * 0.3, 48_000, subtype="FLOAT"))[0]
    right = scipy.signal.resample_poly(noise * 0.3, 1, 3, window=("kaiser", 12.0))
    inside = slice(1_000, 15_000)
    assert np.sqrt(np.mean((ours[inside] - right[inside]) ** 2)) < 2e-3
    beyond = read(processor, encoded(tone(48_000, frequency_hz=11_000), 48_000, subtype="FLOAT"))[0]
    assert np.abs(beyond[1_000:7_000]).max() < 1e-4


def test_several_files_are_padded_and_their_lengths_told(tmp_path: Path) -> None:
    processor = waveform(tmp_path, lengths="lengths", normalise="zero-mean-unit-variance")
    short, long = encoded(tone(16_000, seconds=0.1), 16_000), encoded(tone(16_000, seconds=0.3), 16_000)
    tensors = processor.encode({"audio": [Upload(content=short), Upload(content=long)]})
    assert tensors["waveform"].shape == (2, 4_800)
    assert tensors["lengths"].tolist() == [1_600, 4_800]
    assert not tensors["waveform"][0, 1_600:].any()
    assert tensors["waveform"][0, :1_600].std() == pytest.approx(1.0, abs=1e-4)
    with pytest.raises(MalformedRequest, match="'audio' has 2 files, more than the limit of 1"):
        read(waveform(tmp_path), short, long)


def test_limits(tmp_path: Path) -> None:
    processor = waveform(tmp_path, max_duration_s=0.25)
    assert read(processor, encoded(tone(16_000, seconds=0.25), 16_000)).shape == (1, 4_000)
    for content, said in (
        (encoded(tone(16_000, seconds=0.26), 16_000), "longer than the limit of 0.25 s"),
        (encoded(np.zeros((10, 9)), 16_000), "has 9 channels; the limit is 8"),
        (encoded(np.zeros(10), 500), "has 500 samples per second"),
        (encoded(np.zeros(10), 16_000, "AIFF"), "in the format AIFF; expected WAV, FLAC or OGG"),
        (encoded(np.zeros(0), 16_000), "the sound is empty"),
        (encoded(np.array([0.0, np.nan]), 16_000, subtype="FLOAT"), "samples that are no numbers"),
        (b"ID3 not a sound", "no sound in WAV, FLAC or OGG"),
    ):
        with pytest.raises(MalformedRequest, match=said):
            read(processor, content)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_sounds_are_the_clients_mistake(tmp_path: Path, data: st.DataObject) -> None:
    container = data.draw(st.sampled_from(["WAV", "FLAC", "OGG"]))
    content = bytearray(encoded(tone(16_000, seconds=0.02), 16_000, container))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = content[: data.draw(st.integers(0, len(content)))]
    try:
        array = read(waveform(tmp_path), bytes(cut))
    except MalformedRequest:
        return
    assert array.dtype == np.float32
    assert np.isfinite(array).all()


def test_labels_or_all_outputs(tmp_path: Path) -> None:
    outputs = {"scores": np.array([[0.0, 2.0]], np.float32)}
    assert waveform(tmp_path).decode(outputs) == {"outputs": {"scores": [[0.0, 2.0]]}}
    named = waveform(tmp_path, labels=["quiet", "loud"], top_k=1, activation="none").decode(outputs)
    assert named == {"predictions": [[{"index": 1, "label": "loud", "score": 2.0}]]}


def test_a_missing_package_is_told_at_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(MissingExtra, match=r"pip install 'forwardpass\[audio\]'"):
        open_processor("waveform", tmp_path)
