"""MLServer: a custom runtime; adaptive batching and parallel workers are in its settings files."""

from __future__ import annotations

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from peer_model import Model

__all__ = ["Peer"]


class Peer(MLModel):
    """Serves the model."""

    async def load(self) -> bool:
        """Load the model, in each of the workers."""
        self.model = Model()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Run a batch."""
        (given,) = payload.inputs
        rows = NumpyCodec.decode_input(given).astype(self.model.dtype, copy=False)
        scores = NumpyCodec.encode_output("scores", self.model.run(rows))
        return InferenceResponse(model_name=self.name, outputs=[scores])
