"""How each server is started and asked: its program, its settings and where they are documented, its protocol."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.peers.load import Array
from benchmarks.peers.workloads import Workload

__all__ = ["RIVALS", "Command", "Place", "Protocol", "Rival", "Served"]

APPS = Path(__file__).parent / "apps"
PATIENT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One way to run a rival on this machine; the fastest is found before the comparison."""

    num_workers: int
    num_threads: int
    window_s: float

    def __str__(self) -> str:
        window = f", window {self.window_s * 1e3:g} ms" if self.window_s else ""
        return f"{self.num_workers} x {self.num_threads} threads{window}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What is to be served: `sheds` is whether the server may refuse what would miss the target."""

    workload: Workload
    model: Path
    bundle: Path
    port: int
    place: Place
    sheds: bool
    folder: Path
    """Of its own, for the files that the server wants."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What to start."""

    arguments: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How a row becomes the bytes of a request, and the body of an answer becomes scores."""

    name: str
    request: Callable[[Workload, float | None], bytes]
    """With the client's own deadline in seconds, where the protocol can carry it."""
    scores: Callable[[bytes, Mapping[str, str]], Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """A server, with its environment, and what its documentation says about throughput."""

    name: str
    environment: str | None
    """None for forwardpass: the environment of the benchmark."""
    protocols: tuple[Protocol, ...]
    command: Callable[[str, Served], Command]
    settings: str
    documented: str
    windows: tuple[bool, ...] = (False,)
    """Whether to try it with a window in which batches fill, without one, or both."""
    is_placed: bool = True
    """Whether it has to be told its workers and threads."""
    can_shed: bool = True
    """Whether it has a setting that refuses or gives up what is late."""

    def places(self, workload: Workload) -> list[Place]:
        """Return the ways to run it that are tried."""
        placements = workload.placements if self.is_placed else workload.placements[:1]
        return [
            Place(num_workers=workers, num_threads=threads, window_s=workload.window_s if has_window else 0.0)
            for workers, threads in placements
            for has_window in self.windows
        ]


# --- protocols


def _http(path: str, body: bytes, **headers: str) -> bytes:
    given = {"host": "127.0.0.1", "content-length": str(len(body)), **headers}
    lines = [f"POST {path} HTTP/1.1", *(f"{name.replace('_', '-')}: {value}" for name, value in given.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _json(path: str, document: object) -> bytes:
    return _http(path, json.dumps(document, separators=(",", ":")).encode(), content_type="application/json")


def _plain_json(path: str, key: str, *, is_batch: bool) -> Callable[[Workload, float | None], bytes]:
    def request(workload: Workload, _deadline_s: float | None) -> bytes:
        row = workload.row().astype(float).round(4).tolist() if workload.dtype == "float32" else workload.row().tolist()
        return _json(path, {key: [row] if is_batch else row})

    return request


def _raw(workload: Workload, _deadline_s: float | None) -> bytes:
    return _http("/predict", workload.row().tobytes(), content_type="application/octet-stream")


def _mosec_raw(workload: Workload, _deadline_s: float | None) -> bytes:
    return _http("/inference", workload.row().tobytes(), content_type="application/octet-stream")


DATATYPES = {"float32": "FP32", "int64": "INT64"}


def _oip(path: str, *, is_binary: bool) -> Callable[[Workload, float | None], bytes]:
    """The Open Inference Protocol; binary is Triton's extension of it."""

    def request(workload: Workload, deadline_s: float | None) -> bytes:
        row = workload.row()
        tensor: dict[str, object] = {
            "name": workload.input_name,
            "shape": [1, len(row)],
            "datatype": DATATYPES[workload.dtype],
        }
        own = {} if deadline_s is None else {"x_request_timeout_ms": str(round(deadline_s * 1e3))}
        target = path.format(workload.name)
        if not is_binary:
            tensor["data"] = row.astype(float).round(4).tolist() if workload.dtype == "float32" else row.tolist()
            body = json.dumps({"inputs": [tensor]}, separators=(",", ":")).encode()
            return _http(target, body, content_type="application/json", **own)
        tensor["parameters"] = {"binary_data_size": row.nbytes}
        document = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
        head = json.dumps(document, separators=(",", ":")).encode()
        return _http(target, head + row.tobytes(), inference_header_content_length=str(len(head)), **own)

    return request


def _json_scores(*keys: str | int) -> Callable[[bytes, Mapping[str, str]], Array]:
    def scores(body: bytes, _headers: Mapping[str, str]) -> Array:
        found = json.loads(body)
        for key in keys:
            found = found[key]
        return np.array(found, dtype=np.float32).ravel()

    return scores


def _raw_scores(body: bytes, _headers: Mapping[str, str]) -> Array:
    return np.frombuffer(body, dtype=np.float32)


def _binary_scores(body: bytes, headers: Mapping[str, str]) -> Array:
    return np.frombuffer(body[int(headers["inference-header-content-length"]) :], dtype=np.float32)


OIP_SCORES = _json_scores("outputs", 0, "data")
OURS = "/v2/models/{}/infer"
PEERS = "/v2/models/peer/infer"


# --- commands


def _settings(served: Served, kind: str = "") -> dict[str, str]:
    """Return the environment of a rival's program, which reads its settings there."""
    settings = {
        "model": str(served.model),
        "port": served.port,
        **asdict(served.place),
        "max_batch": served.workload.max_batch,
        "slo_s": served.workload.slo_s,
        "max_waiting": served.workload.max_waiting,
        "sheds": served.sheds,
        "kind": kind,
    }
    return {"PEER_SETTINGS": json.dumps(settings), "PYTHONPATH": str(APPS)}


def _forwardpass(python: str, served: Served) -> Command:
    arguments = [python, "-m", "forwardpass", "serve", str(served.bundle), "--port", str(served.port)]
    return Command(arguments=arguments if served.sheds else [*arguments, "--timeout", str(PATIENT_S)])


def _fastapi(kind: str) -> Callable[[str, Served], Command]:
    def command(python: str, served: Served) -> Command:
        options = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
        options += ["--port", str(served.port), "--workers", str(served.place.num_workers)]
        return Command(
            arguments=[python, "-m", "uvicorn", "fastapi_app:app", *options], environment=_settings(served, kind)
        )

    return command


def _program(name: str, **environment: str) -> Callable[[str, Served], Command]:
    def command(python: str, served: Served) -> Command:
        return Command(arguments=[python, str(APPS / name)], environment={**_settings(served), **environment})

    return command


def _bentoml(python: str, served: Served) -> Command:
    options = ["bentoml_app:Peer", "--port", str(served.port), "--host", "127.0.0.1", "--working-dir", str(APPS)]
    environment = {**_settings(served), "BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(served.folder)}
    return Command(arguments=[python, "-m", "bentoml", "serve", *options], environment=environment)


def _mlserver(python: str, served: Served) -> Command:
    """Write the two settings files that MLServer reads; batching is on as soon as both numbers are set."""
    folder = served.folder
    workers = served.place.num_workers
    server = {
        "host": "127.0.0.1",
        "http_port": served.port,
        "grpc_port": served.port + 1,
        "metrics_port": served.port + 2,
        "parallel_workers": workers if workers > 1 else 0,
        "debug": False,
        "environments_dir": str(folder / "environments"),
        "metrics_dir": str(folder),
    }
    model = {
        "name": "peer",
        "implementation": "mlserver_app.Peer",
        "max_batch_size": served.workload.max_batch,
        "max_batch_time": served.place.window_s,
    }
    (folder / "settings.json").write_text(json.dumps(server))
    (folder / "model-settings.json").write_text(json.dumps(model))
    arguments = [str(Path(python).with_name("mlserver")), "start", str(folder)]
    return Command(arguments=arguments, environment=_settings(served))


def _pytriton(python: str, served: Served) -> Command:
    """Tell Triton's Python stub where the interpreter's own library is, as the installation page has it."""
    library = str(sysconfig.get_config_var("LIBDIR"))
    environment = {**_settings(served), "LD_LIBRARY_PATH": library, "PYTRITON_HOME": str(served.folder)}
    return Command(arguments=[python, str(APPS / "pytriton_app.py")], environment=environment)


def _mosec(python: str, served: Served) -> Command:
    timeout_s = served.workload.slo_s if served.sheds else PATIENT_S
    options = ["--address", "127.0.0.1", "--port", str(served.port), "--timeout", str(round(timeout_s * 1e3))]
    options += ["--log-level", "warning", "--path", str(served.folder / "ipc")]
    return Command(arguments=[python, str(APPS / "mosec_app.py"), *options], environment=_settings(served))


RAY_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_LOG_TO_STDERR": "0"}

_ALL = (
    Rival(
        name="forwardpass",
        environment=None,
        protocols=(
            Protocol(name="OIP JSON", request=_oip(OURS, is_binary=False), scores=OIP_SCORES),
            Protocol(name="OIP binary", request=_oip(OURS, is_binary=True), scores=_binary_scores),
        ),
        command=_forwardpass,
        settings="none: workers, threads and batches come from the bundle's latency table, the deadline from its SLO",
        documented="docs/how-to/serve.md",
        is_placed=False,
    ),
    Rival(
        name="fastapi-async",
        environment="fastapi",
        protocols=(
            Protocol(
                name="JSON", request=_plain_json("/predict", "row", is_batch=False), scores=_json_scores("scores")
            ),
        ),
        command=_fastapi("async"),
        settings="async def, uvloop, httptools, --workers",
        documented="fastapi.tiangolo.com: Concurrency and async; Server Workers",
        can_shed=False,
    ),
    Rival(
        name="fastapi-def",
        environment="fastapi",
        protocols=(
            Protocol(
                name="JSON", request=_plain_json("/predict", "row", is_batch=False), scores=_json_scores("scores")
            ),
        ),
        command=_fastapi("def"),
        settings="def in the thread pool, uvloop, httptools, --workers",
        documented="fastapi.tiangolo.com: Concurrency and async; Server Workers",
        can_shed=False,
    ),
    Rival(
        name="fastapi-semaphore",
        environment="fastapi",
        protocols=(
            Protocol(
                name="JSON", request=_plain_json("/predict", "row", is_batch=False), scores=_json_scores("scores")
            ),
        ),
        command=_fastapi("semaphore"),
        settings="as fastapi-def, and 503 where max_waiting requests are inside",
        documented="docs.python.org: asyncio.Semaphore",
    ),
    Rival(
        name="bentoml",
        environment="bentoml",
        protocols=(
            Protocol(name="JSON", request=_plain_json("/predict", "rows", is_batch=True), scores=_json_scores(0)),
        ),
        command=_bentoml,
        settings="batchable, max_batch_size, max_latency_ms at the SLO, workers, access log off",
        documented="docs.bentoml.com: Adaptive batching; Parallelism: workers",
    ),
    Rival(
        name="litserve",
        environment="litserve",
        protocols=(
            Protocol(
                name="JSON", request=_plain_json("/predict", "row", is_batch=False), scores=_json_scores("scores")
            ),
        ),
        command=_program("litserve_app.py"),
        settings="max_batch_size, batch_timeout, workers_per_device, fast_queue, timeout at the SLO",
        documented="lightning.ai/docs/litserve: Batching; LitServer (fast_queue for more than 100 RPS)",
        windows=(False, True),
    ),
    Rival(
        name="ray",
        environment="ray",
        protocols=(Protocol(name="raw bytes", request=_raw, scores=_raw_scores),),
        command=_program("ray_app.py", **RAY_ENVIRONMENT),
        settings="@serve.batch, num_replicas, max_ongoing_requests, max_queued_requests, access log off",
        documented="docs.ray.io: Dynamic request batching; Performance tuning",
        windows=(False, True),
    ),
    Rival(
        name="ray-haproxy",
        environment="ray",
        protocols=(Protocol(name="raw bytes", request=_raw, scores=_raw_scores),),
        command=_program(
            "ray_app.py", **RAY_ENVIRONMENT, RAY_SERVE_THROUGHPUT_OPTIMIZED="1", RAY_SERVE_ENABLE_HA_PROXY="1"
        ),
        settings="as ray, with RAY_SERVE_THROUGHPUT_OPTIMIZED and RAY_SERVE_ENABLE_HA_PROXY",
        documented="docs.ray.io: Enable high throughput on Ray Serve",
        windows=(False, True),
    ),
    Rival(
        name="mlserver",
        environment="mlserver",
        protocols=(Protocol(name="OIP JSON", request=_oip(PEERS, is_binary=False), scores=OIP_SCORES),),
        command=_mlserver,
        settings="max_batch_size, max_batch_time, parallel_workers (0 for one), debug off",
        documented="mlserver.readthedocs.io: Adaptive batching; Parallel inference",
        windows=(True,),
        can_shed=False,
    ),
    Rival(
        name="pytriton",
        environment="pytriton",
        protocols=(
            Protocol(name="OIP binary", request=_oip(PEERS, is_binary=True), scores=_binary_scores),
            Protocol(name="OIP JSON", request=_oip(PEERS, is_binary=False), scores=OIP_SCORES),
        ),
        command=_pytriton,
        settings="DynamicBatcher, max_batch_size, several infer_func, QueuePolicy with a timeout of half the SLO",
        documented="triton-inference-server.github.io/pytriton: Batching; Deploying models (multi-instance)",
        windows=(False, True),
    ),
    Rival(
        name="mosec",
        environment="mosec",
        protocols=(Protocol(name="raw bytes", request=_mosec_raw, scores=_raw_scores),),
        command=_mosec,
        settings="max_batch_size, max_wait_time (1 ms is its least), num, --timeout at the SLO, 429 beyond --capacity",
        documented="mosecorg.github.io/mosec: Interface (append_worker); Configuration",
        windows=(True,),
    ),
)
RIVALS = {rival.name: rival for rival in _ALL}
