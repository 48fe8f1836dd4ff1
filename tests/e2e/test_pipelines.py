"""Pipelines behind a real server: the answers that one gets by hand, one deadline for all, and nothing lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from forwardpass.core.tensors import Array
from forwardpass.errors import InvalidPipelines
from forwardpass.serve import ModelConfig, PipelineConfig, StepConfig, Traffic, read_config
from tests.e2e.serving import (
    Background,
    RunningServer,
    eventually,
    infer_body,
    output,
    post,
    serve_settings,
    serving_models,
)
from tests.models import pack_with_processor, write_bundle, write_mlp, write_text_bundle

LABELS = ["calm", "glad", "sad"]
HEAD_CALL = {"pixels": np.ones((1, 4), np.float32)}
EMBED = StepConfig(model="text")
JUDGE = StepConfig(model="head", inputs={"pixels": "embedding"}, outputs={"scores": "mood"})
MOOD = PipelineConfig(name="mood", steps=(EMBED, JUDGE))
TEXTS = ["the cat sleeps", "a kitten", "."]
IDS = {
    "input_ids": np.array([[2, 4, 6], [3, 5, 0]], np.int64),
    "attention_mask": np.array([[1, 1, 1], [1, 1, 0]], np.int64),
}
INFER, PREDICT = "/v2/models/mood/infer", "/v1/models/mood/predict"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text encoder with a processor, and three versions of a head whose processor names labels."""
    folder = tmp_path_factory.mktemp("pipelines")
    repository = folder / "repository"
    write_text_bundle(folder / "text")
    shutil.copytree(folder / "text", repository / "text")
    for number in (1, 2, 3):
        write_head(folder / f"head-{number}", seed=number)
    shutil.copytree(folder / "head-1", repository / "head" / "1")
    return folder


def write_head(folder: Path, *, seed: int) -> Path:
    def write(path: Path) -> Path:
        return write_mlp(path, num_inputs=4, num_outputs=3, seed=seed)

    settings = {"labels.json": {"labels": LABELS, "top_k": 1}}
    return pack_with_processor(folder, write, HEAD_CALL, "head", "labels", settings)


@contextmanager
def serving_moods(
    root: Path, *pipelines: PipelineConfig, folder: Path | None = None, **settings: Any
) -> Iterator[RunningServer]:
    chosen = serve_settings(**settings)
    with serving_models(
        [], root=folder or root / "repository", settings=chosen, pipelines=pipelines or [MOOD]
    ) as running:
        yield running


@pytest.fixture(scope="module")
def served(root: Path) -> Iterator[RunningServer]:
    sad = PipelineConfig(name="nested", steps=(StepConfig(model="mood", outputs={"mood": "feeling"}),))
    renamed = PipelineConfig(
        name="renamed",
        steps=(StepConfig(model="text", inputs={"input_ids": "ids", "attention_mask": "mask"}), JUDGE),
    )
    with serving_moods(root, MOOD, sad, renamed) as running:
        yield running


@pytest.fixture
def own(root: Path, tmp_path: Path) -> Path:
    """A repository that the test may change."""
    shutil.copytree(root / "repository", tmp_path / "repository")
    return tmp_path / "repository"


def step_by_step(served: RunningServer, tensors: dict[str, Array]) -> Array:
    embedding = output(served.ask("POST", "/v2/models/text/infer", infer_body(tensors)))
    return output(served.ask("POST", "/v2/models/head/infer", infer_body({"pixels": embedding})))


def test_tensors_go_through_all_steps(served: RunningServer) -> None:
    answer = served.ask("POST", INFER, infer_body(IDS, id="7"))
    assert answer.json["model_name"] == "mood"
    assert answer.json["id"] == "7"
    assert [tensor["name"] for tensor in answer.json["outputs"]] == ["mood"]
    np.testing.assert_array_equal(output(answer), step_by_step(served, IDS))


@pytest.mark.parametrize("model", ["mood", "nested", "renamed"])
def test_the_first_processor_encodes_and_the_last_one_decodes(served: RunningServer, model: str) -> None:
    answer = served.ask("POST", f"/v1/models/{model}/predict", json.dumps({"text": TEXTS}).encode())
    assert answer.status == 200, answer.body
    embeddings = served.ask("POST", "/v1/models/text/predict", json.dumps({"text": TEXTS}).encode()).json["embeddings"]
    pixels = {"pixels": np.array(embeddings, np.float32)}
    scores = output(served.ask("POST", "/v2/models/head/infer", infer_body(pixels)))
    assert [ranked[0]["label"] for ranked in answer.json["predictions"]] == [LABELS[row.argmax()] for row in scores]


def test_a_model_whose_processor_only_decodes_takes_tensors(served: RunningServer) -> None:
    body = json.dumps({"inputs": {"pixels": [[9.0, 0.0, 0.0, 0.0]]}}).encode()
    (ranked,) = served.ask("POST", "/v1/models/head/predict", body).json["predictions"]
    scores = output(served.ask("POST", "/v2/models/head/infer", infer_body({"pixels": np.eye(1, 4, dtype="f4") * 9})))
    assert [entry["label"] for entry in ranked] == [LABELS[scores.argmax()]]


def test_curl_streams_from_the_last_processor(served: RunningServer) -> None:
    url = f"http://127.0.0.1:{served.port}/v1/models/renamed/predict"
    command = ["curl", "-sSN", "-H", "accept: text/event-stream", "-F", "text=the cat", "-F", "text=a kitten", url]
    text = subprocess.run(command, check=True, capture_output=True, timeout=60).stdout.decode()
    assert [line.partition(":")[0] for line in text.split("\n") if line] == ["data", "data", "event", "data"]


def test_what_it_says_of_itself(served: RunningServer) -> None:
    described = served.ask("GET", "/v2/models/mood").json
    assert described["platform"] == "ensemble"
    assert described["versions"] == ["1"]
    assert described["inputs"] == [
        {"name": "input_ids", "datatype": "INT64", "shape": [-1, -1]},
        {"name": "attention_mask", "datatype": "INT64", "shape": [-1, -1]},
    ]
    assert described["outputs"] == [{"name": "mood", "datatype": "FP32", "shape": [-1, 3]}]
    assert described["properties"] == {"steps": "mood (pipeline: text → head)"}
    assert served.ask("GET", "/v2/models/mood/versions/1").json["inputs"] == described["inputs"]
    assert served.ask("GET", "/v2/models/mood/versions/2").status == 404
    assert served.ask("GET", "/v2/models/mood/ready").json == {"name": "mood", "ready": True}
    assert served.ask("GET", "/v2/models/mood/config").json["platform"] == "ensemble"
    index = {entry["name"]: entry for entry in served.ask("POST", "/v2/repository/index").json}
    assert index["mood"] == {"name": "mood", "version": "1", "state": "READY", "reason": ""}
    assert "/v1/models/mood/predict" in served.ask("GET", "/openapi.json").json["paths"]
    assert b"text \xe2\x86\x92 head" in served.ask("GET", "/docs").body
    for action in ("load", "unload"):
        refused = served.ask("POST", f"/v2/repository/models/mood/{action}")
        assert (refused.status, refused.json["error"]) == (
            400,
            "Malformed request: 'mood' is a pipeline; it follows its models and has no state of its own.",
        )


def test_requests_and_steps_are_counted(served: RunningServer) -> None:
    def succeeded() -> int:
        (line,) = served.ask("GET", "/v2/models/mood/stats").json["model_stats"]
        count: int = line["inference_stats"]["success"]["count"]
        return count

    before = succeeded()
    assert served.ask("POST", INFER, infer_body(IDS)).status == 200
    assert served.ask("POST", INFER, b"{}").status == 400
    assert succeeded() == before + 1
    metrics = served.ask("GET", "/metrics").body.decode()
    assert 'forwardpass_requests_total{model="mood",outcome="malformed-request",version="1"}' in metrics
    assert 'forwardpass_pipeline_step_seconds_count{model="head",pipeline="mood",step="2"}' in metrics
    assert 'forwardpass_pipeline_in_flight{pipeline="mood"} 0.0' in metrics


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (infer_body({"input_ids": IDS["input_ids"]}), "Input 'attention_mask' is missing"),
        (infer_body({"pixels": HEAD_CALL["pixels"]}), "Input 'pixels' is not an input of this model"),
        (infer_body(IDS | {"input_ids": IDS["input_ids"] + 99}), "The model 'text' cannot run these values"),
    ],
)
def test_a_clients_mistakes_are_400(served: RunningServer, body: bytes, said: str) -> None:
    answer = served.ask("POST", INFER, body)
    assert (answer.status, answer.json["error"][: len(said)]) == (400, said)


def pipeline(name: str, *steps: StepConfig) -> PipelineConfig:
    return PipelineConfig(name=name, steps=steps)


@pytest.mark.parametrize("name", ["text", "mood", "renamed"])
def test_what_a_processor_shows_as_its_example_is_answered(served: RunningServer, name: str) -> None:
    path = f"/v1/models/{name}/predict"
    described = served.ask("GET", "/openapi.json").json["paths"][path]["post"]["requestBody"]["content"]
    example = described["application/json"]["schema"]["example"]
    assert served.ask("POST", path, json.dumps(example).encode()).status == 200
    form = f'data-url="{path}">\n<textarea aria-label="Fields for {name}"'
    assert form in served.ask("GET", "/docs").body.decode()


def test_all_mistakes_are_told_at_the_start(root: Path) -> None:
    wrong = [
        pipeline("a", EMBED, StepConfig(model="haed")),
        pipeline("b", StepConfig(model="head", version="9"), StepConfig(model="text")),
        pipeline("c", StepConfig(model="d")),
        pipeline("d", StepConfig(model="c")),
        pipeline("text", StepConfig(model="head")),
    ]
    with pytest.raises(InvalidPipelines) as failure, serving_moods(root, *wrong):
        pass
    assert str(failure.value) == (
        "The pipelines cannot be served:\n"
        "  - the pipelines lead back to themselves: c → d → c\n"
        "  - pipeline 'text': a model has this name already\n"
        "  - pipeline 'a', step 2 (haed): there is no such model; there are head, text\n"
        "  - pipeline 'b', step 1 (head): there is no version '9' of 'head' here. Available: 1\n"
        "  - pipeline 'c', step 1 (d): this pipeline cannot be served itself\n"
        "  - pipeline 'd', step 1 (c): this pipeline cannot be served itself"
    )


@contextmanager
def frozen(served: RunningServer, model: str) -> Iterator[None]:
    (pid,) = served.server.repository.models[model].default.worker_pids
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def in_flight(served: RunningServer) -> int:
    (one,) = (one for one in served.server.repository.pipelines if one.name == "mood")
    return one.num_in_flight


@pytest.mark.parametrize("model", ["text", "head"])
def test_the_deadline_is_for_the_whole(served: RunningServer, model: str) -> None:
    with frozen(served, model):
        answer = served.ask("POST", INFER, infer_body(IDS), {"x-request-timeout-ms": "300"})
    assert answer.status == 504
    assert answer.json["error"] == "The request could not be answered within its deadline of 0.3 s."
    assert in_flight(served) == 0


@pytest.mark.parametrize("model", ["text", "head"])
def test_a_client_that_leaves_gives_up_the_step_that_runs(served: RunningServer, model: str) -> None:
    with frozen(served, model):
        with closing(served.connect()) as connection:
            connection.sendall(post(INFER, infer_body(IDS)))
            eventually(lambda: in_flight(served) == 1)
        eventually(lambda: in_flight(served) == 0)
    for version in (served.server.repository.models[name].default for name in ("text", "head")):
        assert version.num_open == 0
    assert served.ask("POST", INFER, infer_body(IDS)).status == 200


@pytest.mark.parametrize("model", ["text", "head"])
def test_a_worker_that_dies_in_the_middle_loses_no_request(root: Path, model: str) -> None:
    with serving_moods(root) as served:
        right = step_by_step(served, IDS)
        version = served.server.repository.models[model].default
        (pid,) = version.worker_pids
        os.kill(pid, signal.SIGSTOP)
        waiting = [Background(lambda: served.ask("POST", INFER, infer_body(IDS))) for _ in range(3)]
        eventually(lambda: in_flight(served) == 3)
        os.kill(pid, signal.SIGKILL)
        for one in waiting:
            np.testing.assert_array_equal(output(one.result()), right)
        assert in_flight(served) == 0
        assert version.metrics.num_workers_lost == 1


def test_stopping_answers_what_is_on_its_way(root: Path) -> None:
    with serving_moods(root) as served:
        right = step_by_step(served, IDS)
        with frozen(served, "head"):
            waiting = Background(lambda: served.ask("POST", INFER, infer_body(IDS)))
            eventually(lambda: in_flight(served) == 1)
            stopping = threading.Thread(target=served.stop)
            stopping.start()
            eventually(lambda: not served.server.is_ready)
        stopping.join(60)
        np.testing.assert_array_equal(output(waiting.result()), right)


def test_only_so_many_are_on_their_way_at_once(root: Path) -> None:
    small = PipelineConfig(name="mood", steps=(EMBED, JUDGE), max_in_flight=2)
    with serving_moods(root, small) as served:
        with frozen(served, "head"):
            waiting = [Background(lambda: served.ask("POST", INFER, infer_body(IDS))) for _ in range(2)]
            eventually(lambda: in_flight(served) == 2)
            refused = served.ask("POST", INFER, infer_body(IDS))
            assert (refused.status, "retry-after" in refused.headers) == (429, True)
            assert "2 requests are in the pipeline 'mood'" in refused.json["error"]
        assert [one.result().status for one in waiting] == [200, 200]


def test_models_are_replaced_underneath_without_a_lost_answer(root: Path, own: Path) -> None:
    """Every answer under load is that of one version of the head; who asks after a load gets the newest."""
    with serving_moods(root, folder=own) as served:
        rights = [step_by_step(served, IDS)]
        stop, answers, threads = threading.Event(), list[Any](), []

        def ask() -> None:
            while not stop.is_set():
                answers.append(served.ask("POST", INFER, infer_body(IDS)))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for number in ("2", "3"):
                shutil.copytree(root / f"head-{number}", own / "head" / number)
                assert served.ask("POST", "/v2/repository/models/head/load").status == 200
                rights.append(step_by_step(served, IDS))
                np.testing.assert_array_equal(output(served.ask("POST", INFER, infer_body(IDS))), rights[-1])
                asked = len(answers)
                eventually(lambda least=asked + 6: len(answers) > least)  # type: ignore[misc]
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert {answer.status for answer in answers} == {200}
        got = [output(answer) for answer in answers]
        assert all(any(np.array_equal(one, right) for right in rights) for one in got)


def test_a_request_keeps_the_versions_that_it_came_in_with(root: Path, own: Path) -> None:
    """It waits in the first step while the second one's model is replaced; the old one stays until it has answered."""
    with serving_moods(root, folder=own) as served:
        before = step_by_step(served, IDS)
        with frozen(served, "text"):
            waiting = Background(lambda: served.ask("POST", INFER, infer_body(IDS)))
            eventually(lambda: in_flight(served) == 1)
            shutil.copytree(root / "head-2", own / "head" / "2")
            assert served.ask("POST", "/v2/repository/models/head/load").status == 200
        np.testing.assert_array_equal(output(waiting.result()), before)
        after = output(served.ask("POST", INFER, infer_body(IDS)))
        assert not np.array_equal(after, before)


def test_without_one_of_its_models_it_is_not_ready_until_that_is_back(root: Path, own: Path) -> None:
    with serving_moods(root, folder=own) as served:
        assert served.ask("POST", "/v2/repository/models/head/unload").status == 200
        assert served.ask("GET", "/v2/models/mood/ready").status == 503
        assert served.ask("GET", "/v2/health/ready").status == 200  # the operator has taken it away on purpose
        refused = served.ask("POST", INFER, infer_body(IDS))
        assert (refused.status, "there is no such model" in refused.json["error"]) == (503, True)
        assert served.ask("POST", "/v2/repository/models/head/load").status == 200
        assert served.ask("GET", "/v2/models/mood/ready").status == 200
        assert served.ask("POST", INFER, infer_body(IDS)).status == 200


def test_a_model_that_no_longer_fits_is_told_and_the_pipeline_waits_for_one_that_does(root: Path, own: Path) -> None:
    with serving_moods(root, folder=own) as served:
        wide = write_mlp(own.parent / "wide.onnx", num_inputs=5, num_outputs=3)
        write_bundle(own / "head" / "2", wide, [{"pixels": np.ones((1, 5), np.float32)}], name="head")
        assert served.ask("POST", "/v2/repository/models/head/load").status == 200
        refused = served.ask("POST", INFER, infer_body(IDS))
        assert refused.status == 503
        assert "its input 'pixels' is float32[batch, 5], but 'embedding' is float32[batch, 4]" in refused.json["error"]
        assert served.ask("GET", "/v2/health/ready").status == 503
        shutil.copytree(root / "head-3", own / "head" / "3")
        assert served.ask("POST", "/v2/repository/models/head/load").status == 200
        assert served.ask("POST", INFER, infer_body(IDS)).status == 200


def test_the_configuration_of_the_documentation_serves(tmp_path: Path) -> None:
    def write(path: Path) -> Path:
        model = onnx.load(write_mlp(path, num_inputs=4, num_outputs=3))
        model.graph.input[0].name = model.graph.node[0].input[0] = "features"
        onnx.save(model, path)
        return path

    write_text_bundle(tmp_path / "minilm-bundle")
    call = {"features": np.ones((1, 4), np.float32)}
    pack_with_processor(tmp_path / "mood-bundle", write, call, "mood", "labels", {"labels.json": {"labels": LABELS}})
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "pipelines.md").read_text()
    (tmp_path / "serve.toml").write_text(re.findall(r"```toml\n(.*?)```", page, re.DOTALL)[0])
    read = read_config(tmp_path / "serve.toml")
    with serving_models(read.models, settings=serve_settings(), pipelines=read.pipelines) as served:
        answer = served.ask("POST", "/v1/models/mood-of-text/predict", b'{"text": "a cat"}')
        assert {ranked["label"] for ranked in answer.json["predictions"][0]} == set(LABELS)


def test_labels_and_shares_of_a_model_are_followed(root: Path, own: Path) -> None:
    shutil.copytree(root / "head-2", own / "head" / "2")
    chosen = serve_settings()
    traffic = Traffic(labels={"stable": "1", "canary": "2"}, split={"stable": 0.5, "canary": 0.5})
    configs = [
        ModelConfig(name="text", path=own / "text", settings=chosen.model),
        ModelConfig(name="head", path=own / "head", settings=chosen.model, traffic=traffic),
    ]
    canary = StepConfig(model="head", version="canary", inputs={"pixels": "embedding"}, outputs={"scores": "mood"})
    pipelines: Sequence[PipelineConfig] = [MOOD, pipeline("brave", EMBED, canary)]
    with serving_models(configs, settings=chosen, pipelines=pipelines) as served:
        embedding = {"pixels": output(served.ask("POST", "/v2/models/text/infer", infer_body(IDS)))}
        rights = [
            output(served.ask("POST", f"/v2/models/head/versions/{number}/infer", infer_body(embedding)))
            for number in ("1", "2")
        ]
        brave = output(served.ask("POST", "/v2/models/brave/infer", infer_body(IDS)))
        np.testing.assert_array_equal(brave, rights[1])
        got = [output(served.ask("POST", INFER, infer_body(IDS))) for _ in range(40)]
    counts = [sum(np.array_equal(one, right) for one in got) for right in rights]
    assert sum(counts) == 40
    assert min(counts) >= 5  # 40 fair coins fall below 5 on one side once in ten million times
