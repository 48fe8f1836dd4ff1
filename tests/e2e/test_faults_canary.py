"""A version that gets a share of the requests and is worse than the stable one loses it by itself (F11)."""

from __future__ import annotations

import json
import shutil
import signal
import threading
from collections.abc import Iterator
from os import kill
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from forwardpass.core.canary import Side
from forwardpass.core.slo import Slo
from forwardpass.core.tensors import Array
from tests.e2e.serving import RunningServer, eventually, infer_body, serve_settings, serving_models
from tests.models import mlp_calls, write_bundle, write_mlp

INFER = "/v2/models/mlp/infer"
BODY = infer_body({"pixels": np.full((1, 64), 0.01, np.float32)})
HUGE = infer_body({"pixels": np.full((1, 64), 10.0, np.float32)})
SHARES = {"labels": {"stable": 1, "canary": 2}, "split": {"stable": 1, "canary": 1}}
MAX_REQUESTS = 400


def write_overflowing(path: Path) -> Path:
    """Write the same model, but squared in the middle of the way: large inputs become infinite and then NaN."""
    model = onnx.load(str(write_mlp(path, seed=1)))
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(helper.make_node("Exp", ["before"], ["large"]))
    model.graph.node.append(helper.make_node("Exp", ["large"], ["larger"]))
    model.graph.node.append(helper.make_node("Sub", ["larger", "larger"], ["scores"]))
    onnx.save(model, str(path))
    return path


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("canary")
    calls: list[dict[str, Array]] = [{"pixels": 0.01 * call["pixels"]} for call in mlp_calls()]
    write_bundle(folder / "good", write_mlp(folder / "good.onnx", seed=1), calls)
    write_bundle(folder / "bad", write_overflowing(folder / "bad.onnx"), calls)
    return folder


@pytest.fixture
def served(bundles: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[RunningServer]:
    """Version 1 is good, version 2 what the test asks for."""
    shutil.copytree(bundles / "good", tmp_path / "mlp" / "1")
    shutil.copytree(bundles / request.param, tmp_path / "mlp" / "2")
    settings = serve_settings(slo=Slo.parse("p99=400ms"), hang_s=60.0)
    with serving_models([], root=tmp_path, settings=settings) as running:
        yield running


def set_traffic(running: RunningServer, **fields: object) -> None:
    answer = running.ask("PUT", "/v1/models/mlp/traffic", json.dumps(SHARES | fields).encode())
    assert answer.status == 200, answer.body


def traffic(running: RunningServer) -> dict[str, object]:
    shown: dict[str, object] = running.ask("GET", "/v1/models/mlp/traffic").json
    return shown


def ask_until_withdrawn(running: RunningServer, body: bytes = HUGE) -> int:
    """Ask one after the other; return how many requests it took."""
    for number in range(MAX_REQUESTS):
        running.ask("POST", INFER, body)
        if traffic(running)["withdrawn"]:
            return number + 1
    raise AssertionError("the canary kept its share")


def check_withdrawn(running: RunningServer, reason: str, words: str, caplog: pytest.LogCaptureFixture) -> None:
    shown = traffic(running)
    assert shown["split"] == {"stable": 2, "canary": 0}
    (why,) = shown["withdrawn"].values()  # type: ignore[attr-defined]  # it is an object of JSON
    assert words in why
    versions = {running.ask("POST", INFER, BODY).json["model_version"] for _ in range(20)}
    assert versions == {"1"}
    index = {entry["version"]: entry for entry in running.ask("POST", "/v2/repository/index").json}
    assert index["2"]["reason"] == f"taken out of the split: {why}"
    assert index["1"]["reason"] == ""
    told = [record.message for record in caplog.records if "taken out of the split" in record.message]
    assert told == [
        f"mlp version 2 is taken out of the split, and its share goes to version 1: {why}",
    ]
    metrics = running.ask("GET", "/metrics").body.decode()
    assert f'forwardpass_withdrawals_total{{model="mlp",reason="{reason}",version="2"}} 1.0' in metrics


@pytest.mark.parametrize("served", ["bad"], indirect=True)
def test_a_canary_that_answers_nan_is_taken_out(served: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    set_traffic(served)
    ask_until_withdrawn(served)
    check_withdrawn(served, "not-finite", "were answered with values that are not finite, 0%", caplog)
    named = served.ask("POST", "/v2/models/mlp/versions/canary/infer", BODY)
    assert named.json["model_version"] == "2", "who names it still gets it"
    assert served.ask("POST", "/v2/repository/models/mlp/load").status == 200
    assert traffic(served)["split"] == {"stable": 2, "canary": 0}, "loading does not bring it back"
    set_traffic(served)
    assert traffic(served)["withdrawn"] == {}, "an operator does"


@pytest.mark.parametrize("served", ["bad"], indirect=True)
def test_a_shadow_that_is_left_alone_with_the_requests_is_told_once(
    served: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    """It shadowed what the canary answered, which is taken out."""
    set_traffic(served, shadow="stable")
    ask_until_withdrawn(served)
    assert served.ask("POST", "/v2/repository/models/mlp/load").status == 200
    assert traffic(served)["shadow"] == "stable"
    told = [record.message for record in caplog.records if "shadow answers" in record.message]
    assert told == ["mlp: its shadow answers every request itself now, so there is nothing to compare"]
    plain = served.server.repository.models["mlp"].plain_targets()
    assert plain, "its requests may be read by native code again"


@pytest.mark.parametrize("served", ["good"], indirect=True)
def test_a_canary_that_is_slow_is_taken_out(served: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    """It is stopped again and again for longer than the target; the stable one has its own process."""
    set_traffic(served)
    pid = served.server.repository.models["mlp"].versions["2"].worker_pids[0]
    is_over = threading.Event()

    def slow_down() -> None:
        while not is_over.is_set():
            kill(pid, signal.SIGSTOP)
            is_over.wait(0.6)
            kill(pid, signal.SIGCONT)
            is_over.wait(0.002)

    slowing = threading.Thread(target=slow_down)
    slowing.start()
    try:
        clients = [threading.Thread(target=ask_until_withdrawn, args=(served, BODY)) for _ in range(4)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
    finally:
        is_over.set()
        slowing.join()
    check_withdrawn(served, "slow", "missed the target", caplog)


@pytest.mark.parametrize("served", ["good"], indirect=True)
def test_two_versions_that_do_the_same_both_keep_their_share(served: RunningServer) -> None:
    set_traffic(served, rollback={"tolerance": 0.05})
    for number in range(200):
        served.ask("POST", INFER, BODY if number % 3 else HUGE)
    assert traffic(served)["withdrawn"] == {}
    model = served.server.repository.models["mlp"]
    assert model._trials is not None
    assert all(model._trials._gates["2"]._sides[side].num_observed > 20 for side in Side)


@pytest.mark.parametrize("served", ["bad"], indirect=True)
def test_who_names_a_version_cannot_get_it_withdrawn_and_it_can_be_switched_off(served: RunningServer) -> None:
    set_traffic(served)
    for _ in range(40):
        served.ask("POST", "/v2/models/mlp/versions/canary/infer", HUGE)
        served.ask("POST", INFER, BODY)
    assert traffic(served)["withdrawn"] == {}
    set_traffic(served, rollback=False)
    for _ in range(60):
        served.ask("POST", INFER, HUGE)
    assert (traffic(served)["withdrawn"], traffic(served)["rollback"]) == ({}, None)


@pytest.mark.parametrize("served", ["good"], indirect=True)
def test_limits_that_make_no_sense_are_refused(served: RunningServer) -> None:
    for rollback, words in [
        ({"error_rate": 0}, "Expected `float` > 0.0 - at `$.rollback.error_rate`"),
        ({"tolerance": 1}, "Expected `float` < 1.0 - at `$.rollback.tolerance`"),
        ({"speed": 1}, "Object contains unknown field `speed` - at `$.rollback`"),
        ("no", "Expected `bool | object`, got `str` - at `$.rollback`"),
    ]:
        answer = served.ask("PUT", "/v1/models/mlp/traffic", json.dumps(SHARES | {"rollback": rollback}).encode())
        assert (answer.status, words in answer.json["error"]) == (400, True), answer.body
    eventually(lambda: served.ask("GET", "/v2/health/ready").status == 200)
