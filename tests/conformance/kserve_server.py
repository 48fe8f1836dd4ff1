"""Run in KServe's own environment: its model server with a model that changes nothing.

    python kserve_server.py HTTP_PORT

Ends when its standard input does.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

from kserve import InferOutput, InferResponse, Model, ModelServer
from kserve.utils.utils import generate_uuid


class Echo(Model):
    """Gives back its first input as `y`."""

    def __init__(self) -> None:
        super().__init__("echo")
        self.ready = True

    def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        """Answer as KServe's servers do."""
        (given,) = payload.inputs
        array = given.as_numpy()
        output = InferOutput(name="y", shape=list(array.shape), datatype=given.datatype)
        output.set_data_from_numpy(array, binary_data=payload.use_binary_outputs)
        return InferResponse(response_id=payload.id or generate_uuid(), model_name="echo", infer_outputs=[output])


def end_with_standard_input() -> None:
    """Wait for the end."""
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=end_with_standard_input, daemon=True).start()
    ModelServer(http_port=int(sys.argv[1]), workers=1, enable_grpc=False).start([Echo()])
