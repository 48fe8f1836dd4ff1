"""mosec: dynamic batching in its Rust front, raw bytes in and out."""

from __future__ import annotations

from typing import Any

import numpy as np
from mosec import Server, Worker
from peer_model import SETTINGS, Model


class Peer(Worker):
    """Serves the model."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()

    def deserialize(self, data: bytes) -> Any:
        """Return the row of a request."""
        return np.frombuffer(data, dtype=self.model.dtype)

    def forward(self, data: Any) -> list[Any]:
        """Run a batch, or a row where there is no batching."""
        return list(self.model.run(np.stack(data))) if SETTINGS.max_batch > 1 else self.model.run(data[None])[0]

    def serialize(self, data: Any) -> bytes:
        """Return the response of a row."""
        return data.tobytes()


if __name__ == "__main__":
    server = Server()
    server.append_worker(
        Peer,
        num=SETTINGS.num_workers,
        max_batch_size=SETTINGS.max_batch,
        max_wait_time=max(1, round(SETTINGS.window_s * 1e3)),
    )
    server.run()
