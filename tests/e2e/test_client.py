"""The Python client, blocking and asynchronous, against our server: tensors survive, errors are the server's own."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import trustme

from forwardpass import AsyncClient, Client
from forwardpass.errors import (
    BodyTooLarge,
    DeadlineExceeded,
    InvalidOption,
    MalformedRequest,
    NotFound,
    NotReady,
    Overloaded,
    ServerUnreachable,
    TensorMismatch,
    Unauthorized,
)
from forwardpass.predict import Predictor
from forwardpass.serve.auth import Scope, new_key, write_keys
from tests.e2e.serving import RunningServer, eventually, serve_settings, serving, serving_models
from tests.models import mlp_calls, write_bundle, write_mlp, write_text_bundle, write_typed

PIXELS = np.random.default_rng(3).standard_normal((3, 64)).astype(np.float32)
NUMBERS = ("uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64")
DTYPES = ("bool", "float16", *NUMBERS)
Ask: TypeAlias = Callable[..., Any]
"""Runs one method of a client of one kind, and closes it."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("client")
    write_bundle(folder / "repository" / "mlp" / "1", write_mlp(folder / "mlp.onnx"), mlp_calls())
    write_text_bundle(folder / "repository" / "text")
    for dtype in DTYPES:
        model = write_typed(folder / f"{dtype}.onnx", dtype)
        call = {"x": np.ones((1, 2), dtype)}
        write_bundle(folder / "repository" / f"echo-{dtype}", model, [call], name=f"echo-{dtype}")
    return folder / "repository"


@pytest.fixture(scope="module")
def served(root: Path) -> Iterator[RunningServer]:
    with serving_models([], root=root) as running:
        yield running


@pytest.fixture(params=[Client, AsyncClient])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Make a client, call a method, and close it."""
    return blocking if request.param is Client else awaited


def blocking(port: int, method: str, *arguments: Any, options: dict[str, Any] | None = None, **named: Any) -> Any:
    with Client(f"http://127.0.0.1:{port}", **(options or {})) as client:
        return getattr(client, method)(*arguments, **named)


def awaited(port: int, method: str, *arguments: Any, options: dict[str, Any] | None = None, **named: Any) -> Any:
    async def run() -> Any:
        async with AsyncClient(f"http://127.0.0.1:{port}", **(options or {})) as client:
            return await getattr(client, method)(*arguments, **named)

    return asyncio.run(run())


def edges(dtype: str) -> Any:
    if dtype == "bool":
        return np.array([[True, False], [False, True]])
    limits: Any = np.finfo(dtype) if dtype.startswith("float") else np.iinfo(dtype)
    return np.array([[limits.min, limits.max], [0, 1]], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_datatype_comes_back_as_it_went(served: RunningServer, ask: Ask, dtype: str) -> None:
    sent = edges(dtype)
    came = ask(served.port, "infer", f"echo-{dtype}", {"x": sent})["y"]
    assert (came.dtype, came.shape) == (sent.dtype, sent.shape)
    assert came.flags.aligned
    assert came.flags.writeable
    np.testing.assert_array_equal(came, sent)


@pytest.mark.parametrize("dtype", ["bool", *NUMBERS])
def test_json_does_the_same_where_it_can(served: RunningServer, ask: Ask, dtype: str) -> None:
    sent = edges(dtype)
    came = ask(served.port, "infer", f"echo-{dtype}", {"x": sent}, options={"binary": False})["y"]
    assert came.dtype == sent.dtype
    np.testing.assert_array_equal(came, sent)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("echo-float16", np.ones((1, 2), np.float16), "is FP16, which JSON cannot carry"),
        (
            "echo-float32",
            np.array([[1, np.nan]], np.float32),
            "has values that are not finite, which JSON cannot carry",
        ),
        ("any", np.array([[b"\xff", b""]], object), "has bytes that are no text, which JSON cannot carry"),
    ],
)
def test_what_json_would_change_is_not_sent_in_it(
    served: RunningServer, ask: Ask, name: str, value: Any, reason: str
) -> None:
    with pytest.raises(TensorMismatch) as caught:
        ask(served.port, "infer", name, {"x": value}, options={"binary": False})
    assert str(caught.value) == f"Input 'x' {reason}; expected a server with binary_tensor_data."


def test_nan_comes_back_in_bytes_and_as_null(served: RunningServer, ask: Ask) -> None:
    sent = np.array([[np.nan, np.inf]], np.float32)
    np.testing.assert_array_equal(ask(served.port, "infer", "echo-float32", {"x": sent})["y"], sent)


def test_layouts_of_any_kind_are_sent_right(served: RunningServer, ask: Ask) -> None:
    rows = np.arange(12, dtype=np.float32).reshape(2, 6)
    for sent in (rows[:, ::3], rows[:, :2], np.asfortranarray(rows[:, 1:3]), rows[:, :2].astype(">f4")):
        np.testing.assert_array_equal(ask(served.port, "infer", "echo-float32", {"x": sent})["y"], sent)


def test_answers_are_those_of_the_model_itself(served: RunningServer, root: Path, ask: Ask) -> None:
    right = Predictor.open(root / "mlp" / "1").predict({"pixels": PIXELS})["scores"]
    named = {"version": "1", "outputs": ["scores"], "timeout_s": 30.0, "priority": 1}
    np.testing.assert_array_equal(ask(served.port, "infer", "mlp", {"pixels": PIXELS}, **named)["scores"], right)


def test_large_tensors_go_and_come(served: RunningServer, ask: Ask) -> None:
    sent = np.random.default_rng(0).standard_normal((600_000, 2))
    np.testing.assert_array_equal(ask(served.port, "infer", "echo-float64", {"x": sent})["y"], sent)


def test_processors_and_plain_lists_are_asked_by_their_fields(served: RunningServer, ask: Ask) -> None:
    assert len(ask(served.port, "predict", "text", text=["the cat", "a kitten"])["embeddings"]) == 2
    answer = ask(served.port, "predict", "mlp", inputs={"pixels": PIXELS}, timeout_s=30.0)
    assert np.shape(answer["outputs"]["scores"]) == (3, 10)
    with pytest.raises(MalformedRequest, match="the fields are not JSON"):
        ask(served.port, "predict", "mlp", inputs=object())


def test_servers_and_models_describe_themselves(served: RunningServer, ask: Ask) -> None:
    assert ask(served.port, "metadata").name == "forwardpass"
    described = ask(served.port, "model_metadata", "mlp")
    assert (described.inputs[0].name, described.inputs[0].datatype, described.inputs[0].shape) == (
        "pixels",
        "FP32",
        (-1, 64),
    )
    assert ask(served.port, "is_ready")
    assert ask(served.port, "is_ready", "mlp", version="1")
    assert not ask(served.port, "is_ready", "other")
    assert ("mlp", "1", "READY") in {(line.name, line.version, line.state) for line in ask(served.port, "models")}
    before = ask(served.port, "statistics", "mlp")[0].inference_count
    ask(served.port, "infer", "mlp", {"pixels": PIXELS})
    assert ask(served.port, "statistics", "mlp", version="1")[0].inference_count == before + 3
    assert {line.name for line in ask(served.port, "statistics")} >= {"mlp", "text"}


def test_models_go_and_come(served: RunningServer, ask: Ask) -> None:
    ask(served.port, "unload", "echo-int8")
    assert not ask(served.port, "is_ready", "echo-int8")
    ask(served.port, "load", "echo-int8")
    assert ask(served.port, "is_ready", "echo-int8")
    with pytest.raises(NotFound, match="There is no model 'other'"):
        ask(served.port, "load", "other")


def test_mistakes_raise_what_the_server_raised(served: RunningServer, ask: Ask) -> None:
    with pytest.raises(TensorMismatch) as caught:
        ask(served.port, "infer", "mlp", {"pixels": PIXELS[:, :5]})
    error = caught.value
    assert str(error) == "Input 'pixels' has shape [3, 5]; expected float32[batch, 64]."
    assert (error.tensor, error.reason, error.expected) == ("pixels", "has shape [3, 5]", "float32[batch, 64]")
    with pytest.raises(NotFound) as missing:
        ask(served.port, "infer", "mlp", {"pixels": PIXELS}, version="9")
    assert (missing.value.what, missing.value.available) == ("version '9' of 'mlp'", ("1",))
    with pytest.raises(NotFound, match="There is no model"):
        ask(served.port, "infer", "a/b\r\nx: y", {"x": PIXELS})
    with pytest.raises(MalformedRequest, match="there is no output 'x'; the model has scores"):
        ask(served.port, "infer", "mlp", {"pixels": PIXELS}, outputs=["x"])
    with pytest.raises(TensorMismatch, match="has the dtype complex128; expected numbers, booleans, text or bytes"):
        ask(served.port, "infer", "mlp", {"pixels": PIXELS.astype(complex)})
    with pytest.raises(TensorMismatch, match="has rows of different lengths"):
        ask(served.port, "infer", "mlp", {"pixels": [[1], [1, 2]]})


def test_slips_are_told_before_anything_is_sent(served: RunningServer, ask: Ask) -> None:
    with pytest.raises(InvalidOption, match="Invalid value 'ndarray' for inputs: expected arrays by name"):
        ask(served.port, "infer", "mlp", PIXELS)
    with pytest.raises(InvalidOption, match=r"for outputs: expected a list of names, such as \['scores'\]"):
        ask(served.port, "infer", "mlp", {"pixels": PIXELS}, outputs="scores")
    with pytest.raises(InvalidOption, match="for headers: expected names and values of printable ASCII"):
        ask(served.port, "infer", "mlp", {"pixels": PIXELS}, headers={"x": "a\r\nb: c"})
    with pytest.raises(InvalidOption, match="for timeout_s: expected more than 0"):
        ask(served.port, "infer", "mlp", {"pixels": PIXELS}, timeout_s=0)
    with pytest.raises(InvalidOption, match="Invalid value 'http' for url"):
        Client("ftp://http")


def test_a_body_over_the_limit_is_told_while_it_is_sent(root: Path, ask: Ask) -> None:
    with serving(root / "echo-float32", serve_settings(max_body_bytes=100_000)) as running:
        with pytest.raises(BodyTooLarge) as caught:
            ask(running.port, "infer", "echo-float32", {"x": np.zeros((2_000_000, 2), np.float32)})
        assert caught.value.max_bytes == 100_000


def test_keys_are_sent_and_never_shown(root: Path, tmp_path: Path, ask: Ask) -> None:
    made, record = new_key("mine", (Scope.INFER,))
    write_keys(tmp_path / "keys", (record,))
    with serving(root / "mlp" / "1", serve_settings(keys=tmp_path / "keys")) as running:
        with pytest.raises(Unauthorized):
            ask(running.port, "infer", "mlp", {"pixels": PIXELS})
        assert ask(running.port, "infer", "mlp", {"pixels": PIXELS}, options={"key": made})["scores"].shape == (3, 10)
    client = Client("localhost", key=made)
    assert made not in repr(vars(client)) + repr(client)


def test_deadlines_hold_when_nothing_is_answered(root: Path, ask: Ask) -> None:
    with serving(root / "mlp" / "1") as running, running.frozen_worker():
        begun_s = time.monotonic()
        with pytest.raises(DeadlineExceeded) as caught:
            ask(running.port, "infer", "mlp", {"pixels": PIXELS}, timeout_s=1.0)
        assert caught.value.deadline_s == pytest.approx(1.0, rel=0.2)
        assert time.monotonic() - begun_s < 20


def test_refusals_say_when_to_come_back_and_are_tried_again_within_the_deadline(root: Path, ask: Ask) -> None:
    with serving(root / "mlp" / "1", serve_settings(max_queue_rows=3)) as running, ThreadPoolExecutor() as threads:

        def infer(**named: Any) -> Any:
            return ask(running.port, "infer", "mlp", {"pixels": PIXELS}, **named)

        with running.frozen_worker():
            waiting = [threads.submit(infer), threads.submit(infer)]
            running.wait_until_accepted(2)
            running.wait_until_waiting(1)
            with pytest.raises(Overloaded) as caught:
                infer(options={"max_retries": 0})
            assert caught.value.retry_after_s > 0
            begun_s = time.monotonic()
            with pytest.raises(Overloaded):
                infer(timeout_s=0.9)
            assert time.monotonic() - begun_s < 0.9, "it did not wait for what would come too late"
            patient = threads.submit(infer, timeout_s=50.0)
            eventually(lambda: running.server.statistics().num_refused >= 3)
        for future in (*waiting, patient):
            assert future.result(60)["scores"].shape == (3, 10)


def test_a_connection_that_the_server_closed_meanwhile_is_replaced(root: Path) -> None:
    with serving(root / "mlp" / "1", serve_settings(keep_alive_s=0.05)) as running:
        with Client(f"127.0.0.1:{running.port}") as client:
            for _ in range(3):
                assert client.infer("mlp", {"pixels": PIXELS})["scores"].shape == (3, 10)
                time.sleep(0.12)

        async def run() -> None:
            async with AsyncClient(f"127.0.0.1:{running.port}") as client:
                for _ in range(3):
                    assert (await client.infer("mlp", {"pixels": PIXELS}))["scores"].shape == (3, 10)
                    await asyncio.sleep(0.12)

        asyncio.run(run())


def test_threads_share_a_client_and_its_connections(served: RunningServer) -> None:
    wrong: list[object] = []
    with Client(f"127.0.0.1:{served.port}", max_connections=2) as client:

        def work(number: int) -> None:
            for step in range(20):
                sent = np.array([[number, step]], np.float32)
                came = client.infer("echo-float32", {"x": sent})["y"]
                if not np.array_equal(came, sent):
                    wrong.append((sent, came))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_many_tasks_share_a_client_and_a_cancelled_one_harms_nobody(served: RunningServer) -> None:
    async def run() -> None:
        async with AsyncClient(f"127.0.0.1:{served.port}", max_connections=3) as client:

            async def one(number: int) -> None:
                sent = np.array([[number, -number]], np.float32)
                np.testing.assert_array_equal((await client.infer("echo-float32", {"x": sent}))["y"], sent)

            tasks = [asyncio.create_task(one(number)) for number in range(60)]
            await asyncio.sleep(0.01)
            for task in tasks[::4]:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results)
            await one(7)

    asyncio.run(run())


def test_tls_is_verified(root: Path, tmp_path: Path) -> None:
    authority, other = trustme.CA(), trustme.CA()
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    authority.issue_cert("someone").private_key_and_cert_chain_pem.write_to_path(tmp_path / "client.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    other.cert_pem.write_to_path(tmp_path / "other.pem")
    settings = serve_settings(certificate=tmp_path / "server.pem", client_ca=tmp_path / "ca.pem")
    sent = {"x": np.random.default_rng(0).standard_normal((60_000, 2)).astype(np.float32)}
    with serving(root / "echo-float32", settings) as running:
        url = f"https://localhost:{running.port}"
        mine: dict[str, Any] = {"certificate": tmp_path / "client.pem"}
        with Client(url, ca=tmp_path / "ca.pem", **mine) as client:
            for _ in range(2):
                np.testing.assert_array_equal(client.infer("echo-float32", sent)["y"], sent["x"])
        with Client(url, verify=False, **mine) as careless:
            assert careless.is_ready()
        with Client(url, ca=tmp_path / "other.pem", **mine) as wary, pytest.raises(ServerUnreachable) as caught:
            wary.is_ready()
        assert str(caught.value).startswith(f"Cannot reach the server at {url}: TLS failed (")
        with Client(url, ca=tmp_path / "ca.pem") as unknown, pytest.raises(ServerUnreachable):
            unknown.is_ready()

        async def run() -> None:
            async with AsyncClient(url, ca=tmp_path / "ca.pem", **mine) as client:
                for _ in range(2):
                    np.testing.assert_array_equal((await client.infer("echo-float32", sent))["y"], sent["x"])

        asyncio.run(run())
    with pytest.raises(InvalidOption, match="expected PEM files"):
        Client("https://localhost", ca=tmp_path / "nothing.pem")
    with pytest.raises(InvalidOption) as readable:
        Client("localhost:8000", ca=tmp_path / "ca.pem")
    expected = "Invalid value 'http://localhost:8000' for url: expected 'https://…', since ca or certificate is given."
    assert str(readable.value) == expected


def test_a_server_that_stops_is_unreachable_or_not_ready(root: Path, ask: Ask) -> None:
    with serving(root / "mlp" / "1") as running:
        port = running.port
        assert ask(port, "is_ready")
    with pytest.raises((ServerUnreachable, NotReady)) as caught:
        ask(port, "infer", "mlp", {"pixels": PIXELS})
    assert str(caught.value) == f"Cannot reach the server at http://127.0.0.1:{port}: connection refused."
    client = Client(f"127.0.0.1:{port}")
    client.close()
    with pytest.raises(ServerUnreachable, match="this client was closed"):
        client.is_ready()


def test_both_clients_offer_the_same() -> None:
    def offered(kind: type) -> dict[str, list[str]]:
        methods = inspect.getmembers(kind, inspect.isfunction)
        return {name: list(inspect.signature(method).parameters) for name, method in methods if name[:1] != "_"}

    assert offered(Client) == offered(AsyncClient)
    assert list(inspect.signature(Client).parameters) == list(inspect.signature(AsyncClient).parameters)
