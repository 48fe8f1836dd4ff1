"""PyTriton: Triton with its dynamic batcher in front of Python; it rejects late requests by its queue policy."""

from __future__ import annotations

from typing import Any

import numpy as np
from peer_model import SETTINGS, Model
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, QueuePolicy, Tensor
from pytriton.triton import Triton, TritonConfig

SHARE_OF_SLO = 0.5
"""How much of the target a request may spend in the queue; the rest is for the batch that it then joins."""


def instance(model: Model) -> Any:
    """Return a function that runs batches with a session of its own."""

    @batch
    def infer(**inputs: Any) -> dict[str, Any]:
        return {"scores": model.run(inputs[model.input_name])}

    return infer


def main() -> None:
    """Serve until SIGTERM."""
    models = [Model() for _ in range(SETTINGS.num_workers)]
    policy = QueuePolicy(default_timeout_microseconds=round(SHARE_OF_SLO * SETTINGS.slo_s * 1e6))
    batcher = DynamicBatcher(
        max_queue_delay_microseconds=round(SETTINGS.window_s * 1e6),
        default_queue_policy=policy if SETTINGS.sheds else None,
    )
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=SETTINGS.port,
        allow_grpc=False,
        allow_metrics=False,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="peer",
            infer_func=[instance(model) for model in models],
            inputs=[Tensor(name=models[0].input_name, dtype=models[0].dtype.type, shape=(models[0].row_size,))],
            outputs=[Tensor(name="scores", dtype=np.float32, shape=(-1,))],
            config=ModelConfig(max_batch_size=SETTINGS.max_batch, batcher=batcher),
        )
        triton.serve()


if __name__ == "__main__":
    main()
