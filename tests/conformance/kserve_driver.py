"""Run in KServe's own environment: asks a server with KServe's clients, and prints what they understood as JSON.

    python kserve_driver.py HTTP_URL GRPC_HOST:PORT

Reads `{"pixels": rows}` from standard input.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput


def request(pixels: Any, *, is_binary: bool, wants_binary: bool | None) -> Any:
    """Make a request of KServe's own."""
    given = InferInput(name="pixels", shape=list(pixels.shape), datatype="FP32")
    given.set_data_from_numpy(pixels, binary_data=is_binary)
    wanted = None if wants_binary is None else [RequestedOutput("scores", {"binary_data": wants_binary})]
    return InferRequest(model_name="mlp", infer_inputs=[given], request_outputs=wanted, request_id="mine")


def understood(response: Any) -> dict[str, Any]:
    """Return what the client made of an answer."""
    (output,) = response.outputs
    array = output.as_numpy()
    return {
        "id": response.id,
        "model": response.model_name,
        "name": output.name,
        "datatype": output.datatype,
        "shape": list(array.shape),
        "values": array.ravel().tolist(),
    }


async def main() -> None:
    """Ask everything."""
    url, grpc_url = sys.argv[1:3]
    pixels = np.array(json.load(sys.stdin)["pixels"], np.float32)
    found: dict[str, Any] = {}
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        found["rest ready"] = await client.is_server_ready(url)
        found["rest live"] = await client.is_server_live(url)
        found["rest model ready"] = await client.is_model_ready(url, "mlp")
        for name, (is_binary, wants_binary) in {
            "rest, JSON": (False, None),
            "rest, bytes": (True, True),
            "rest, bytes in": (True, False),
            "rest, bytes out": (False, True),
        }.items():
            sent = request(pixels, is_binary=is_binary, wants_binary=wants_binary)
            found[name] = understood(await client.infer(url, sent, model_name="mlp"))
        try:
            await client.infer(url, request(pixels[:, :3], is_binary=False, wants_binary=None), model_name="mlp")
        except Exception as error:
            found["rest mistake"] = f"{type(error).__name__}: {error}"
    async with InferenceGRPCClient(grpc_url) as client:
        found["grpc ready"] = await client.is_server_ready()
        found["grpc live"] = await client.is_server_live()
        found["grpc model ready"] = await client.is_model_ready("mlp")
        for name, is_binary in {"grpc, typed": False, "grpc, raw": True}.items():
            found[name] = understood(await client.infer(request(pixels, is_binary=is_binary, wants_binary=None)))
        try:
            await client.infer(request(pixels[:, :3], is_binary=True, wants_binary=None))
        except Exception as error:
            found["grpc mistake"] = f"{type(error).__name__}: {error}"
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    asyncio.run(main())
