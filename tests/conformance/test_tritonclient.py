"""Triton's own clients, unchanged: what they send is understood, and what comes back they understand."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from tritonclient.utils import InferenceServerException

from forwardpass.core.tensors import Array
from forwardpass.serve import PipelineConfig, StepConfig
from tests.e2e.serving import RunningServer, serve_settings, serving_models
from tests.models import mlp_calls, write_bundle, write_mlp, write_typed

PIXELS = np.random.default_rng(3).standard_normal((3, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton")
    write_bundle(folder / "repository" / "mlp" / "1", write_mlp(folder / "mlp.onnx"), mlp_calls())
    for dtype in DTYPES:
        model = write_typed(folder / f"{dtype}.onnx", dtype)
        call = {"x": np.ones((1, 2), dtype)}
        write_bundle(folder / "repository" / f"echo-{dtype}", model, [call], name=f"echo-{dtype}")
    model = write_typed(folder / "wide.onnx", "float32", size=10)
    call = {"x": np.ones((1, 10), np.float32)}
    write_bundle(folder / "repository" / "wide-echo", model, [call], name="wide-echo")
    return folder / "repository"


DTYPES = ("bool", "uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float64")


@pytest.fixture(scope="module")
def served(root: Path) -> Iterator[RunningServer]:
    twice = StepConfig(model="mlp", inputs={"pixels": "image"}, outputs={"scores": "x"})
    pipeline = PipelineConfig(name="scores-twice", steps=(twice, StepConfig(model="wide-echo")))
    with serving_models([], root=root, settings=serve_settings(grpc_port=0), pipelines=[pipeline]) as running:
        yield running


@pytest.fixture(scope="module")
def right(root: Path) -> Array:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    path = str(root / "mlp" / "1" / "variants" / "onnx-fp32" / "model.onnx")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    array: Array = session.run(["scores"], {"pixels": PIXELS})[0]
    return array


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest, served: RunningServer) -> Iterator[tuple[Any, Any]]:
    """A client, and the module that it comes from."""
    if request.param == "http":
        module: Any = triton_http
        made = module.InferenceServerClient(f"127.0.0.1:{served.port}")
    else:
        module = triton_grpc
        made = module.InferenceServerClient(f"127.0.0.1:{served.server.grpc_port}")
    yield made, module
    made.close()


def pixels(module: Any, array: Array = PIXELS, **options: Any) -> Any:
    given = module.InferInput("pixels", list(array.shape), "FP32")
    given.set_data_from_numpy(array, **options)
    return given


def test_states_and_descriptions(client: tuple[Any, Any]) -> None:
    asked, module = client
    as_json = {"as_json": True} if module is triton_grpc else {}
    assert asked.is_server_live()
    assert asked.is_server_ready()
    assert asked.is_model_ready("mlp")
    assert asked.is_model_ready("mlp", "1")
    assert not (module is triton_http and asked.is_model_ready("other"))
    assert "binary_tensor_data" in asked.get_server_metadata(**as_json)["extensions"]
    described = asked.get_model_metadata("mlp", **as_json)
    assert described["inputs"][0]["name"] == "pixels"
    assert [int(size) for size in described["inputs"][0]["shape"]] == [-1, 64]
    configured = asked.get_model_config("mlp", **as_json)
    configured = configured.get("config", configured)
    assert configured["input"][0]["name"] == "pixels"
    assert configured["max_batch_size"] > 1
    if module is triton_grpc:
        assert asked.get_model_config("mlp").config.input[0].data_type == 11


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_tensors_go_and_come(client: tuple[Any, Any], right: Array, compression: str | None) -> None:
    asked, module = client
    key = "request_compression_algorithm" if module is triton_http else "compression_algorithm"
    result = asked.infer("mlp", [pixels(module)], request_id="mine", **{key: compression})
    np.testing.assert_array_equal(result.as_numpy("scores"), right)
    answer = result.get_response()
    assert (answer["id"] if module is triton_http else answer.id) == "mine"
    chosen = asked.infer("mlp", [pixels(module)], model_version="1", outputs=[module.InferRequestedOutput("scores")])
    np.testing.assert_array_equal(chosen.as_numpy("scores"), right)


def test_a_pipeline_is_a_model_to_them(client: tuple[Any, Any], right: Array) -> None:
    asked, module = client
    as_json = {"as_json": True} if module is triton_grpc else {}
    assert asked.is_model_ready("scores-twice")
    described = asked.get_model_metadata("scores-twice", **as_json)
    assert (described["platform"], described["inputs"][0]["name"]) == ("ensemble", "image")
    configured = asked.get_model_config("scores-twice", **as_json)
    assert configured.get("config", configured)["platform"] == "ensemble"
    image = module.InferInput("image", list(PIXELS.shape), "FP32")
    image.set_data_from_numpy(PIXELS)
    result = asked.infer("scores-twice", [image], request_id="mine", timeout=5_000_000)
    np.testing.assert_array_equal(result.as_numpy("y"), right)
    asked.infer("scores-twice", [image], model_version="1")
    statistics = asked.get_inference_statistics("scores-twice", **as_json)["model_stats"][0]
    assert int(statistics["inference_stats"]["success"]["count"]) >= 2
    with pytest.raises(InferenceServerException, match="Input 'pixels' is not an input of this model"):
        asked.infer("scores-twice", [pixels(module)])
    index = asked.get_model_repository_index(**as_json)
    entries = {entry["name"]: entry for entry in (index["models"] if isinstance(index, dict) else index)}
    assert entries["scores-twice"]["state"] == "READY"


@pytest.mark.parametrize(("binary_in", "binary_out"), [(True, False), (False, True), (False, False)])
def test_json_and_bytes_mix(served: RunningServer, right: Array, binary_in: bool, binary_out: bool) -> None:
    with triton_http.InferenceServerClient(f"127.0.0.1:{served.port}") as asked:
        wanted = [triton_http.InferRequestedOutput("scores", binary_data=binary_out)]
        result = asked.infer("mlp", [pixels(triton_http, binary_data=binary_in)], outputs=wanted)
    np.testing.assert_array_equal(result.as_numpy("scores"), right)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_datatype_survives(client: tuple[Any, Any], dtype: str) -> None:
    asked, module = client
    edges = [0, 1] if dtype == "bool" else _edges(dtype)
    array = np.array([edges, edges[::-1]], dtype)
    names = {"bool": "BOOL", "float16": "FP16", "float64": "FP64"}
    given = module.InferInput("x", list(array.shape), names.get(dtype, dtype.upper()))
    given.set_data_from_numpy(array)
    result = asked.infer(f"echo-{dtype}", [given])
    np.testing.assert_array_equal(result.as_numpy("y"), array)


def _edges(dtype: str) -> list[Any]:
    limits = np.finfo(dtype) if dtype.startswith("float") else np.iinfo(dtype)
    return [limits.min, limits.max]


def test_deadlines_and_priorities_are_understood(client: tuple[Any, Any], right: Array) -> None:
    asked, module = client
    result = asked.infer("mlp", [pixels(module)], priority=1, timeout=5_000_000)
    np.testing.assert_array_equal(result.as_numpy("scores"), right)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda asked, module: asked.infer("other", [pixels(module)]), "There is no model 'other' here. Available: "),
        (
            lambda asked, module: asked.infer("mlp", [pixels(module)], model_version="9"),
            "There is no version '9' of 'mlp' here. Available: 1.",
        ),
        (
            lambda asked, module: asked.infer("mlp", [pixels(module, PIXELS[:, :5])]),
            "Input 'pixels' has shape [3, 5]; expected float32[batch, 64].",
        ),
        (
            lambda asked, module: asked.infer("mlp", [pixels(module)], outputs=[module.InferRequestedOutput("x")]),
            "Malformed request: there is no output 'x'; the model has scores.",
        ),
        (
            lambda asked, module: asked.infer(
                "mlp", [pixels(module)], outputs=[module.InferRequestedOutput("scores", class_count=3)]
            ),
            "Malformed request: the parameter 'classification' of the output 'scores' is not supported.",
        ),
        (lambda asked, module: asked.load_model("other"), "There is no model 'other' here. Available: "),
        (
            lambda asked, module: asked.load_model("mlp", config="{}"),
            "Malformed request: a model is loaded as it is on disk; 'config' and files cannot be sent.",
        ),
    ],
)
def test_mistakes_come_back_as_the_clients_own_error(client: tuple[Any, Any], make: Any, sentence: str) -> None:
    asked, module = client
    with pytest.raises(InferenceServerException) as caught:
        make(asked, module)
    assert str(caught.value.message()).startswith(sentence)


def test_models_are_listed_unloaded_and_loaded(client: tuple[Any, Any]) -> None:
    asked, module = client

    def states() -> dict[str, str]:
        index = asked.get_model_repository_index()
        entries = (
            index if module is triton_http else [{"name": entry.name, "state": entry.state} for entry in index.models]
        )
        return {entry["name"]: entry["state"] for entry in entries}

    assert states()["echo-int8"] == "READY"
    asked.unload_model("echo-int8")
    assert states()["echo-int8"] == "UNAVAILABLE"
    asked.load_model("echo-int8")
    assert states()["echo-int8"] == "READY"


def test_statistics_count_rows_and_batches(client: tuple[Any, Any]) -> None:
    asked, module = client

    def read() -> dict[str, Any]:
        if module is triton_http:
            line: dict[str, Any] = asked.get_inference_statistics("mlp")["model_stats"][0]
        else:
            line = asked.get_inference_statistics("mlp", as_json=True)["model_stats"][0]
        return line

    asked.infer("mlp", [pixels(module)])
    before = read()
    asked.infer("mlp", [pixels(module)])
    with pytest.raises(InferenceServerException):
        asked.infer("mlp", [pixels(module, PIXELS[:, :5])])
    after = read()
    assert int(after["inference_count"]) - int(before["inference_count"]) == 3
    assert int(after["execution_count"]) - int(before["execution_count"]) == 1
    stats, old = after["inference_stats"], before["inference_stats"]
    assert int(stats["success"]["count"]) - int(old["success"]["count"]) == 1
    assert int(stats["fail"]["count"]) - int(old.get("fail", {}).get("count", 0)) == 1
    assert int(stats["compute_infer"]["ns"]) > int(old["compute_infer"]["ns"])
    sizes = {int(batch["batch_size"]): int(batch["compute_infer"]["count"]) for batch in after["batch_stats"]}
    assert sizes[3] >= 2


def test_many_at_once_over_the_asynchronous_clients(served: RunningServer, right: Array) -> None:
    async def http() -> list[Array]:
        async with triton_http_aio.InferenceServerClient(f"127.0.0.1:{served.port}") as asked:
            results = await asyncio.gather(*(asked.infer("mlp", [pixels(triton_http_aio)]) for _ in range(20)))
        return [result.as_numpy("scores") for result in results]

    async def grpc() -> list[Array]:
        async with triton_grpc_aio.InferenceServerClient(f"127.0.0.1:{served.server.grpc_port}") as asked:
            results = await asyncio.gather(*(asked.infer("mlp", [pixels(triton_grpc_aio)]) for _ in range(20)))
        return [result.as_numpy("scores") for result in results]

    for answers in (asyncio.run(http()), asyncio.run(grpc())):
        assert len(answers) == 20
        for answer in answers:
            np.testing.assert_array_equal(answer, right)


def test_a_stream_answers_every_request_and_survives_a_bad_one(served: RunningServer, right: Array) -> None:
    results: list[tuple[Any, Any]] = []
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{served.server.grpc_port}") as asked:
        asked.start_stream(callback=lambda result, error: results.append((result, error)))
        for number in range(5):
            array = PIXELS[:, :5] if number == 2 else PIXELS
            asked.async_stream_infer("mlp", [pixels(triton_grpc, array)], request_id=str(number))
        asked.stop_stream()
    assert len(results) == 5
    errors = [error for _, error in results if error is not None]
    assert ["expected float32[batch, 64]" in str(error) for error in errors] == [True]
    answered = {result.get_response().id: result for result, error in results if error is None}
    assert set(answered) == {"0", "1", "3", "4"}
    for result in answered.values():
        np.testing.assert_array_equal(result.as_numpy("scores"), right)
