"""BentoML: a batchable API, whose batches are learned, in as many workers as the benchmark asks for."""

# BentoML reads the annotations of `predict`, which must not be strings.
from typing import Annotated

import bentoml
import numpy as np
from bentoml.validators import DType
from peer_model import SETTINGS, Model

DTYPE = Model().dtype.name
NO_LIMIT_MS = 60_000
"""The default of `max_latency_ms`."""


@bentoml.service(workers=SETTINGS.num_workers, logging={"access": {"enabled": False}}, metrics={"enabled": True})
class Peer:
    """Serves the model."""

    def __init__(self) -> None:
        self.model = Model()

    @bentoml.api(
        batchable=True,
        batch_dim=0,
        max_batch_size=SETTINGS.max_batch,
        max_latency_ms=round(SETTINGS.slo_s * 1e3) if SETTINGS.sheds else NO_LIMIT_MS,
    )
    def predict(
        self,
        rows: Annotated[np.ndarray, DType(DTYPE)],
    ) -> np.ndarray:
        """Run a batch."""
        return self.model.run(rows)
