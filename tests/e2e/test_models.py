"""Many models, and versions that come and go while requests are answered."""

from __future__ import annotations

import json
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
import psutil
import pytest

from forwardpass.core.tensors import Array
from forwardpass.serve import ModelConfig, Traffic
from tests.e2e.serving import (
    Background,
    RunningServer,
    eventually,
    infer_body,
    output,
    serve_settings,
    serving_models,
)
from tests.models import mlp_calls, write_bundle, write_mlp, write_text_bundle

INFER = "/v2/models/mlp/infer"
PIXELS = {"pixels": np.random.default_rng(5).standard_normal((2, 64)).astype(np.float32)}
BODY = infer_body(PIXELS)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three versions of a model, and what ONNX Runtime answers with each."""
    folder = tmp_path_factory.mktemp("models")
    for number in ("1", "2", "3"):
        write_bundle(folder / number, write_mlp(folder / f"{number}.onnx", seed=int(number)), mlp_calls())
    return folder


@pytest.fixture(scope="module")
def right(files: Path) -> dict[str, Array]:
    def answer(number: str) -> Array:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(str(files / f"{number}.onnx"), options, providers=["CPUExecutionProvider"])
        array: Array = session.run(["scores"], PIXELS)[0]
        return array

    return {number: answer(number) for number in ("1", "2", "3")}


@pytest.fixture
def root(tmp_path: Path, files: Path) -> Path:
    """A repository with two versions of a model and one of another."""
    for number in ("1", "2"):
        shutil.copytree(files / number, tmp_path / "repository" / "mlp" / number)
    write_text_bundle(tmp_path / "repository" / "text")
    return tmp_path / "repository"


@pytest.fixture
def served(root: Path) -> Iterator[RunningServer]:
    with serving_models([], root=root) as running:
        yield running


def versions(running: RunningServer, num_requests: int = 1, path: str = INFER) -> Counter[str]:
    return Counter(running.ask("POST", path, BODY).json["model_version"] for _ in range(num_requests))


def set_traffic(running: RunningServer, **fields: object) -> None:
    answer = running.ask("PUT", "/v1/models/mlp/traffic", json.dumps(fields).encode())
    assert (answer.status, answer.body) == (200, b"{}"), answer.body


def replace_bundle(new: Path, place: Path) -> None:
    """Put a bundle in the place of another in one step, as the bundle writer does."""
    fresh, old = place.with_name(".fresh"), place.with_name(".old")
    shutil.copytree(new, fresh)
    place.rename(old)
    fresh.rename(place)
    shutil.rmtree(old)


class Crowd:
    """Clients that ask again and again, and note every answer that is not exactly that of one of the versions."""

    def __init__(self, running: RunningServer, right: dict[str, Array], num_clients: int = 4) -> None:
        self._running = running
        self._right = right
        self._is_over = threading.Event()
        self.seen: Counter[str] = Counter()
        self.wrong: list[object] = []
        self._threads = [threading.Thread(target=self._ask) for _ in range(num_clients)]

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        while not self._is_over.is_set():
            answer = self._running.ask("POST", INFER, BODY)
            if answer.status != 200:
                self.wrong.append((answer.status, answer.body))
                continue
            given = output(answer)
            matching = [number for number, array in self._right.items() if np.array_equal(array, given)]
            self.seen.update(matching)
            if not matching:
                self.wrong.append(given)


def test_every_model_of_the_folder_is_served_in_its_newest_version(
    served: RunningServer, right: dict[str, Array]
) -> None:
    np.testing.assert_array_equal(output(served.ask("POST", INFER, BODY)), right["2"])
    assert served.ask("POST", "/v1/models/text/predict", b'{"text": "the cat"}').status == 200
    assert served.ask("GET", "/v2/health/ready").status == 200
    index = served.ask("POST", "/v2/repository/index").json
    assert [(entry["name"], entry["version"], entry["state"]) for entry in index] == [
        ("mlp", "2", "READY"),
        ("text", "1", "READY"),
    ]


def test_labels_name_versions_and_a_split_shares_the_requests(served: RunningServer, right: dict[str, Array]) -> None:
    set_traffic(served, labels={"stable": 1, "canary": 2})
    assert versions(served, 5) == {"1": 5}, "stable gets what names no version"
    canary = served.ask("POST", "/v2/models/mlp/versions/canary/infer", BODY)
    np.testing.assert_array_equal(output(canary), right["2"])
    set_traffic(served, labels={"stable": 1, "canary": 2}, split={"stable": 3, "canary": 1})
    counted = versions(served, 80)
    assert 5 <= counted["2"] <= 40
    assert counted["1"] == 80 - counted["2"]
    set_traffic(served, split={"1": 0, "2": 1})
    assert versions(served, 5) == {"2": 5}


@pytest.mark.parametrize(
    ("traffic", "status", "sentence"),
    [
        ({"labels": {"canary": 9}}, 404, "There is no version '9' of 'mlp' here. Available: 1, 2."),
        (
            {"split": {"1": -1}},
            400,
            "Invalid value '{'1': -1.0}' for split: expected shares from 0 up, not all of them 0.",
        ),
        (
            {"split": {"1": 0}},
            400,
            "Invalid value '{'1': 0.0}' for split: expected shares from 0 up, not all of them 0.",
        ),
        ({"shadow": "ghost"}, 404, "There is no version 'ghost' of 'mlp' here. Available: 1, 2."),
        (
            {"labels": {"stable": 2, "new": 2}, "shadow": "new"},
            400,
            "Invalid value 'new' for shadow: expected another version than the one that answers the requests.",
        ),
        ({"labels": {"a/b": 1}}, 400, "Invalid value 'a/b' for labels: expected labels of letters"),
        ({"colour": 1}, 400, "Malformed request: Object contains unknown field `colour`"),
    ],
)
def test_wrong_traffic_changes_nothing(
    served: RunningServer, traffic: object, status: int, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer = served.ask("PUT", "/v1/models/mlp/traffic", json.dumps(traffic).encode())
    assert answer.status == status
    assert answer.json["error"].startswith(sentence)
    assert "could not be loaded" not in caplog.text
    assert versions(served) == {"2": 1}


def test_a_shadow_sees_every_request_and_nobody_sees_it(served: RunningServer, right: dict[str, Array]) -> None:
    name = "forwardpass_shadow_difference"
    assert name not in served.ask("GET", "/metrics").body.decode()
    set_traffic(served, shadow=2)
    assert f'{name}_count{{model="mlp",version="2"}} 0.0' in served.ask("GET", "/metrics").body.decode()
    for _ in range(4):
        np.testing.assert_array_equal(output(served.ask("POST", INFER, BODY)), right["1"])
    shadow = served.server.repository.models["mlp"].versions["2"]
    eventually(lambda: shadow.metrics.shadow_difference.num_values == 4)
    gap = np.abs(right["1"].astype(float) - right["2"]).max() / np.abs(right["1"]).max()
    assert shadow.metrics.shadow_difference.total == pytest.approx(4 * gap, rel=1e-6)


def test_a_model_is_unloaded_with_its_process_and_loaded_again(served: RunningServer) -> None:
    pids = served.server.repository.models["text"].default.worker_pids
    assert served.ask("POST", "/v2/repository/models/text/unload").status == 200
    assert not any(psutil.pid_exists(pid) for pid in pids)
    gone = served.ask("POST", "/v1/models/text/predict", b'{"text": "the cat"}')
    assert (gone.status, gone.json["error"]) == (404, "There is no model 'text' here. Available: mlp.")
    index = served.ask("POST", "/v2/repository/index").json
    assert index[-1] == {"name": "text", "version": "", "state": "UNAVAILABLE", "reason": "unloaded"}
    assert len(served.ask("POST", "/v2/repository/index", b'{"ready": true}').json) == 1
    assert served.ask("GET", "/v2/health/ready").status == 200, "nobody misses what was unloaded on purpose"
    assert served.ask("POST", "/v2/repository/models/text/load").status == 200
    assert served.ask("POST", "/v1/models/text/predict", b'{"text": "the cat"}').status == 200


@pytest.mark.parametrize(
    ("action", "body", "status", "sentence"),
    [
        ("other/load", b"", 404, "There is no model 'other' here. Available: mlp, text."),
        ("other/unload", b"", 404, "There is no model 'other' here. Available: mlp, text."),
        ("mlp/load", b'{"parameters":{"config":"{}"}}', 400, "Malformed request: a model is loaded as it is on disk"),
        ("mlp/load", b'{"parameters":{"file:1/model.onnx":"AAAA"}}', 400, "Malformed request: a model is loaded as it"),
        ("mlp/load", b"[", 400, "Malformed request: "),
        ("../mlp/load", b"", 404, "There is no route "),
        ("..%2fmlp/load", b"", 404, "There is no route "),
        ("mlp/explode", b"", 404, "There is no route "),
    ],
)
def test_mistakes_of_control_are_told(
    served: RunningServer, action: str, body: bytes, status: int, sentence: str
) -> None:
    answer = served.ask("POST", f"/v2/repository/models/{action}", body)
    assert answer.status == status
    assert answer.json["error"].startswith(sentence)


def corrupt(folder: Path) -> None:
    model = folder / "variants" / "onnx-fp32" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"\0")


def truncate(folder: Path) -> None:
    model = folder / "variants" / "onnx-fp32" / "model.onnx"
    model.write_bytes(model.read_bytes()[:100])


def lose_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{}")


@pytest.mark.parametrize("spoil", [corrupt, truncate, lose_manifest])
def test_a_version_that_cannot_be_loaded_leaves_the_old_one(
    served: RunningServer, root: Path, files: Path, right: dict[str, Array], spoil: Callable[[Path], None]
) -> None:
    shutil.copytree(files / "3", root / "mlp" / "3")
    spoil(root / "mlp" / "3")
    refused = served.ask("POST", "/v2/repository/models/mlp/load")
    assert refused.status == 400
    assert str(root) in refused.json["error"]
    told = [line for line in served.ask("POST", "/v2/repository/index").json if line["name"] == "mlp"]
    assert [(line["version"], line["state"]) for line in told] == [("2", "READY"), ("", "UNAVAILABLE")]
    assert told[1]["reason"] == (
        f"what is on the disk now could not be loaded, what was loaded goes on: {refused.json['error']}"
    )
    answer = served.ask("POST", INFER, BODY)
    assert answer.json["model_version"] == "2"
    np.testing.assert_array_equal(output(answer), right["2"])
    assert served.ask("GET", "/v2/health/ready").status == 200
    shutil.rmtree(root / "mlp" / "3")
    assert served.ask("POST", "/v2/repository/models/mlp/load").status == 200
    assert "UNAVAILABLE" not in served.ask("POST", "/v2/repository/index").body.decode(), "there is nothing to tell"


def reload_under_load(running: RunningServer, place: Path, files: Path, right: dict[str, Array], num: int) -> Crowd:
    before = running.server.repository.models["mlp"].default.bundle.digest
    with Crowd(running, {number: right[number] for number in ("1", "2")}) as crowd:
        for turn in range(num):
            replace_bundle(files / ("1" if turn % 2 else "2"), place)
            assert running.ask("POST", "/v2/repository/models/mlp/load").status == 200
    assert running.server.repository.models["mlp"].default.bundle.digest == before or num % 2
    return crowd


def test_hot_reloads_under_load_lose_nothing_and_mix_nothing(
    tmp_path: Path, files: Path, right: dict[str, Array]
) -> None:
    place = tmp_path / "mlp"
    shutil.copytree(files / "1", place)
    before = set(psutil.Process().children())
    with serving_models([ModelConfig(name="mlp", path=place)]) as running:
        crowd = reload_under_load(running, place, files, right, 6)
        assert crowd.wrong == []
        assert set(crowd.seen) == {"1", "2"}
        eventually(lambda: len(set(psutil.Process().children()) - before) == 1)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_hundred_hot_reloads_lose_nothing_and_leave_no_memory_behind(
    tmp_path: Path, files: Path, right: dict[str, Array]
) -> None:
    place = tmp_path / "mlp"
    shutil.copytree(files / "1", place)
    own = psutil.Process()
    before = set(own.children())
    with serving_models([ModelConfig(name="mlp", path=place)]) as running:
        assert reload_under_load(running, place, files, right, 30).wrong == []
        eventually(lambda: len(set(own.children()) - before) == 1)
        bytes_before, files_before = own.memory_info().rss, own.num_fds()
        assert reload_under_load(running, place, files, right, 100).wrong == []
        eventually(lambda: len(set(own.children()) - before) == 1)
        assert own.memory_info().rss - bytes_before < 16 * 2**20
        eventually(lambda: own.num_fds() <= files_before + 4)


def test_what_is_waiting_when_a_version_is_replaced_is_answered_by_it(
    tmp_path: Path, files: Path, right: dict[str, Array]
) -> None:
    place = tmp_path / "mlp"
    shutil.copytree(files / "1", place)
    with serving_models([ModelConfig(name="mlp", path=place)]) as running:
        with running.frozen_worker():
            held = [Background(lambda: running.ask("POST", INFER, BODY)) for _ in range(3)]
            running.wait_until_accepted(3)
            replace_bundle(files / "2", place)
            assert running.ask("POST", "/v2/repository/models/mlp/load").status == 200
            np.testing.assert_array_equal(output(running.ask("POST", INFER, BODY)), right["2"])
        for answer in held:
            np.testing.assert_array_equal(output(answer.result()), right["1"])


def test_new_versions_are_found_and_broken_ones_are_waited_for(
    root: Path, files: Path, right: dict[str, Array], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with serving_models([], root=root, settings=serve_settings(watch_s=0.05)) as running:
        incomplete = root / "mlp" / "3"
        incomplete.mkdir()
        shutil.copy(files / "3" / "manifest.json", incomplete)
        eventually(lambda: "mlp could not be loaded" in caplog.text)
        assert versions(running) == {"2": 1}
        shutil.copytree(files / "3", incomplete, dirs_exist_ok=True)
        eventually(lambda: versions(running) == {"3": 1})
        np.testing.assert_array_equal(output(running.ask("POST", INFER, BODY)), right["3"])
        (root / "mlp" / "4").mkdir()
        shutil.copy(files / "3" / "manifest.json", root / "mlp" / "4")
        eventually(lambda: caplog.text.count("mlp could not be loaded") == 2)
        shutil.rmtree(root / "mlp" / "4")
        eventually(lambda: caplog.messages.count("mlp is served again as it is on the disk") == 2)
        shutil.copytree(files / "1", root / "another" / "1")
        eventually(lambda: running.ask("GET", "/v2/models/another/ready").status == 200)
        assert caplog.text.count("mlp could not be loaded") == 2


def test_a_worker_that_comes_back_does_not_run_what_has_taken_the_bundles_place(tmp_path: Path, files: Path) -> None:
    """It would answer as version 2 under the name of version 1."""
    place = tmp_path / "mlp"
    shutil.copytree(files / "1", place)
    with serving_models([ModelConfig(name="mlp", path=place)]) as running:
        replace_bundle(files / "2", place)
        psutil.Process(running.server.worker_pids[0]).kill()
        eventually(lambda: running.ask("GET", "/v2/health/ready").status == 503)
        late = running.ask("POST", INFER, BODY, {"X-Request-Timeout-Ms": "400"})
        assert late.status == 504
        assert running.ask("POST", "/v2/repository/models/mlp/load").status == 200
        assert running.ask("GET", "/v2/health/ready").status == 200


def test_traffic_can_be_set_from_the_start(files: Path, right: dict[str, Array]) -> None:
    traffic = Traffic(labels={"stable": "1"}, shadow="3")
    with serving_models([ModelConfig(name="mlp", path=files, traffic=traffic)]) as running:
        np.testing.assert_array_equal(output(running.ask("POST", INFER, BODY)), right["1"])
        assert running.ask("GET", "/v2/models/mlp").json["versions"] == ["1", "3"]
