"""Run in PyTriton's own environment: Triton's front end with an identity for each datatype, and a sum.

    python pytriton_server.py HTTP_PORT GRPC_PORT

Prints `ready` once it answers, and ends when its standard input does.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

DTYPES = (
    "bool",
    "uint8",
    "int8",
    "uint16",
    "int16",
    "uint32",
    "int32",
    "uint64",
    "int64",
    "float16",
    "float32",
    "float64",
)
MAX_BATCH_ROWS = 64


@batch
def echo(x: Any) -> dict[str, Any]:
    """Give back what came."""
    return {"y": x}


@batch
def add(a: Any, b: Any) -> dict[str, Any]:
    """Add two vectors."""
    return {"sum": a + b}


def main() -> None:
    """Serve until standard input ends."""
    http_port, grpc_port = map(int, sys.argv[1:3])
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=http_port,
        grpc_address="127.0.0.1",
        grpc_port=grpc_port,
        allow_metrics=False,
    )
    kinds = {**{dtype: np.dtype(dtype).type for dtype in DTYPES}, "bytes": np.bytes_}
    with Triton(config=config) as triton:
        batching = ModelConfig(max_batch_size=MAX_BATCH_ROWS)
        for name, kind in kinds.items():
            given, made = Tensor(name="x", dtype=kind, shape=(2,)), Tensor(name="y", dtype=kind, shape=(2,))
            triton.bind(f"echo-{name}", echo, [given], [made], config=batching)
        terms = [Tensor(name=name, dtype=np.float32, shape=(-1,)) for name in ("a", "b")]
        triton.bind("add", add, terms, [Tensor(name="sum", dtype=np.float32, shape=(-1,))], config=batching)
        triton.run()
        print("ready", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
