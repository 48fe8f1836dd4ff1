"""Files over real sockets: what foreign clients send is understood, what hostile ones send is refused."""

from __future__ import annotations

import io
import json
import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import requests
import schemathesis
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import response_schema_conformance, status_code_conformance

from forwardpass.serve import ModelConfig, PipelineConfig, StepConfig
from tests.e2e.serving import RunningServer, eventually, serve_settings, serving_models
from tests.models import mlp_calls, write_audio_bundle, write_bundle, write_image_bundle, write_mlp, write_text_bundle

PATIENCE_S = 60


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("files")
    bundles = {
        "colours": write_image_bundle(folder / "colours"),
        "loudness": write_audio_bundle(folder / "loudness"),
        "text": write_text_bundle(folder / "text"),
        "mlp": write_bundle(folder / "mlp", write_mlp(folder / "mlp.onnx"), mlp_calls()),
    }
    chosen = serve_settings(log_requests=True)
    configs = [ModelConfig(name=name, path=path, settings=chosen.model) for name, path in bundles.items()]
    pipeline = PipelineConfig(name="scores", steps=(StepConfig(model="mlp"),))
    with serving_models(configs, settings=chosen, pipelines=[pipeline]) as running:
        yield running


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pictures")
    for name, colour in (("red", (250, 10, 10)), ("green", (10, 250, 10)), ("blue", (10, 10, 250))):
        PIL.Image.new("RGB", (32, 24), colour).save(folder / f"{name}.png")
    soundfile.write(folder / "loud.wav", np.full(1000, 0.5), 16_000)
    return {path.stem: path for path in folder.iterdir()}


def curl(*arguments: str) -> bytes:
    command = ["curl", "-sS", "--max-time", str(PATIENCE_S), *arguments]
    return subprocess.run(command, check=True, capture_output=True).stdout


def url(served: RunningServer, model: str) -> str:
    return f"http://127.0.0.1:{served.port}/v1/models/{model}/predict"


def best(answer: bytes) -> list[str]:
    return [ranked[0]["label"] for ranked in json.loads(answer)["predictions"]]


def test_curl_sends_a_form_with_one_picture_or_several(served: RunningServer, pictures: dict[str, Path]) -> None:
    one = curl("-F", f"image=@{pictures['green']}", url(served, "colours"))
    assert best(one) == ["green"]
    form = [f"image=@{pictures[name]};filename=../../../etc/passwd" for name in ("blue", "red", "green")]
    assert best(curl(*[word for part in form for word in ("-F", part)], url(served, "colours"))) == [
        "blue",
        "red",
        "green",
    ]


def test_curl_sends_the_bare_file(served: RunningServer, pictures: dict[str, Path]) -> None:
    picture = curl("-H", "content-type: image/png", "--data-binary", f"@{pictures['red']}", url(served, "colours"))
    assert best(picture) == ["red"]
    sound = curl("-H", "content-type: audio/wav", "--data-binary", f"@{pictures['loud']}", url(served, "loudness"))
    assert sound == b'{"outputs":{"loudness":[0.5]}}'
    by_name = curl("-F", f"audio=@{pictures['loud']}", url(served, "loudness"))
    assert by_name == sound


def test_requests_sends_chunks_and_a_form_of_texts(served: RunningServer, pictures: dict[str, Path]) -> None:
    with pictures["blue"].open("rb") as file:
        pieces = iter(lambda: file.read(100), b"")
        answer = requests.post(
            url(served, "colours"), data=pieces, headers={"content-type": "image/png"}, timeout=PATIENCE_S
        )
    assert best(answer.content) == ["blue"]
    texts = requests.post(url(served, "text"), files=[("text", (None, "the cat")), ("text", (None, "a"))], timeout=60)
    assert texts.json() == requests.post(url(served, "text"), json={"text": ["the cat", "a"]}, timeout=60).json()


@pytest.mark.parametrize(
    ("model", "arguments", "status", "said"),
    [
        ("colours", ["-F", "image=@{red};type=image/tiff"], 415, "The media type 'image/tiff' is not taken here"),
        ("colours", ["-F", "picture=@{red}"], 400, "'picture' is not a file of this model; its files: 'image'"),
        ("colours", ["-F", "image=@{red}", "-F", "size=3"], 400, "unknown field 'size'; this model takes 'image'"),
        ("colours", ["-F", "image=@{loud};type=image/png"], 400, "the file is not an image of JPEG, PNG"),
        ("colours", ["-d", '{{"image": "aGVsbG8="}}'], 400, "'image' must be a file; send it as multipart/form-data"),
        ("colours", ["-H", "content-type: image/tiff", "-d", "x"], 415, "expected application/json or multipart"),
        ("text", ["-H", "content-type: image/png", "-d", "x"], 415, "application/json or multipart/form-data."),
        ("mlp", ["-F", "image=@{red}"], 415, "The media type 'multipart/form-data' is not taken here"),
        ("loudness", ["-F", "audio=@{red};type=audio/wav"], 400, "no sound in WAV, FLAC or OGG"),
        ("text", ["-H", "accept: audio/wav, text/event-stream;q=0", "-d", '{{"text": "a"}}'], 200, "embeddings"),
        ("mlp", ["-H", "accept: text/event-stream", "-d", "{{}}"], 406, "cannot answer with 'text/event-stream'"),
    ],
)
def test_mistakes_are_told(
    served: RunningServer, pictures: dict[str, Path], model: str, arguments: list[str], status: int, said: str
) -> None:
    words = [word.format(**pictures) for word in arguments]
    *_, body, code = curl("-w", "\n%{http_code}", *words, url(served, model)).decode().split("\n")
    assert (int(code), said in body) == (status, True), body


def test_file_names_reach_neither_log_nor_metrics(
    served: RunningServer, pictures: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        curl("-F", f"image=@{pictures['red']};filename=secret-name.png", url(served, "colours"))
        curl("-F", f"picture=@{pictures['red']};filename=secret-name.png", url(served, "colours"))
        eventually(lambda: "predict" in caplog.text)
    assert "secret-name" not in caplog.text
    assert b"secret-name" not in served.ask("GET", "/metrics").body


def test_refused_forms_are_counted(served: RunningServer) -> None:
    served.ask("POST", "/v1/models/colours/predict", b"", {"content-type": "multipart/form-data; boundary=a"})
    assert b'model="colours",outcome="malformed-request"' in served.ask("GET", "/metrics").body


def test_the_openapi_document_is_kept_to_by_files_and_pipelines(served: RunningServer) -> None:
    """Schemathesis sends forms, files and tensors, right ones and wrong ones."""
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{served.port}/openapi.json")
    checks = [status_code_conformance, response_schema_conformance]
    asked = []
    for result in schema.get_all_operations():
        operation: Any = result.ok()  # type: ignore[union-attr]  # an error raises here
        if not operation.path.endswith(("/predict", "scores/infer")):
            continue
        asked.append(operation.path)

        @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            answer = case.call_and_validate(checks=checks)
            assert answer.status_code != 500  # 504 is right where the deadline is a millisecond

        ask()
    assert len(asked) == 6


PNG = io.BytesIO()
PIL.Image.new("RGB", (2, 2), (9, 9, 9)).save(PNG, "PNG")
PIECES = st.lists(
    st.sampled_from(
        [
            b"--b\r\n",
            b"\r\n--b\r\n",
            b"\r\n--b--\r\n",
            b'Content-Disposition: form-data; name="image"\r\n',
            b'Content-Disposition: form-data; name="image"; filename="x"\r\n',
            b"Content-Type: image/png\r\n",
            b"Content-Type: multipart/mixed; boundary=b\r\n",
            b"Content-Length: 3\r\n",
            b"\r\n",
            PNG.getvalue(),
            b"\x00\xff",
        ]
    ),
    max_size=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=PIECES, noise=st.binary(max_size=40), model=st.sampled_from(["colours", "loudness", "text", "mlp"]))
def test_whatever_is_sent_as_a_form_is_answered_or_refused(
    served: RunningServer, pieces: list[bytes], noise: bytes, model: str
) -> None:
    body = b"".join(pieces) + noise
    answer = served.ask(
        "POST", f"/v1/models/{model}/predict", body, {"content-type": "multipart/form-data; boundary=b"}
    )
    assert answer.status in (200, 400, 415), answer.body
    assert answer.headers["content-type"] == "application/json"
