"""LitServe: batching, several workers, and the ZeroMQ queue that it recommends for more than 100 requests/s."""

# LitServe reads the annotations of `decode_request`, which must not be strings.
from typing import Any

import litserve as ls
import numpy as np
from peer_model import SETTINGS, Model


class Peer(ls.LitAPI):
    """Serves the model."""

    def setup(self, device: str) -> None:
        """Load the model in the worker."""
        self.model = Model()

    def decode_request(self, request: dict[str, Any]) -> Any:
        """Return the row of a request."""
        return np.array(request["row"], dtype=self.model.dtype)

    def predict(self, x: Any) -> Any:
        """Run a batch, or a row where there is no batching."""
        return self.model.run(x) if SETTINGS.max_batch > 1 else self.model.run(x[None])[0]

    def encode_response(self, output: Any) -> dict[str, list[float]]:
        """Return the response of a row."""
        return {"scores": output.tolist()}


if __name__ == "__main__":
    api = Peer(max_batch_size=SETTINGS.max_batch, batch_timeout=SETTINGS.window_s)
    server = ls.LitServer(
        api,
        accelerator="cpu",
        workers_per_device=SETTINGS.num_workers,
        timeout=max(SETTINGS.slo_s, 2 * SETTINGS.window_s) if SETTINGS.sheds else 30,
        fast_queue=True,
    )
    server.run(host="127.0.0.1", port=SETTINGS.port, log_level="warning", generate_client_file=False, access_log=False)
