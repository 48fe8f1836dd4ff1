"""Ray Serve: a deployment with `@serve.batch`, raw bytes in and out."""

from __future__ import annotations

import signal
import threading
from typing import Any

import numpy as np
import ray
from peer_model import SETTINGS, Model
from ray import serve
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(
    num_replicas=SETTINGS.num_workers,
    max_ongoing_requests=max(2 * SETTINGS.max_batch, SETTINGS.max_waiting),
    max_queued_requests=SETTINGS.max_waiting if SETTINGS.sheds else -1,
    ray_actor_options={"num_cpus": 0},
)
class Peer:
    """Serves the model."""

    def __init__(self) -> None:
        self.model = Model()

    @serve.batch(max_batch_size=SETTINGS.max_batch, batch_wait_timeout_s=SETTINGS.window_s)
    async def predict(self, rows: list[Any]) -> list[Any]:
        """Run a batch."""
        return list(self.model.run(np.stack(rows)))

    async def __call__(self, request: Request) -> Response:
        """Answer one row."""
        row = np.frombuffer(await request.body(), dtype=self.model.dtype)
        scores = await self.predict(row)
        return Response(scores.tobytes(), media_type="application/octet-stream")


def main() -> None:
    """Serve until SIGTERM."""
    is_over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: is_over.set())
    ray.init(num_cpus=2, include_dashboard=False, configure_logging=False, log_to_driver=False)
    serve.start(
        http_options={"host": "127.0.0.1", "port": SETTINGS.port},
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )
    serve.run(Peer.bind(), route_prefix="/predict")
    is_over.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
