"""Does this processor's 8-bit arithmetic saturate?

Without VNNI, x86 multiplies pairs of bytes into 16 bits (VPMADDUBSW): two products of 255 x 127 do not fit, and the sum
is cut off silently. The same INT8 file is then less accurate than on the machine that it was tested on. One
multiplication whose exact result is known tells which kind of processor this is.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from forwardpass.core.protocols import Runtime
from forwardpass.optimize.library import onnx
from forwardpass.runtimes import RuntimeOptions
from forwardpass.runtimes.onnx import OnnxRuntime

__all__ = ["int8_saturates"]

DEPTH, WIDTH = 64, 16
LARGEST_U8, LARGEST_S8 = 255, 127
EXACT = DEPTH * LARGEST_U8 * LARGEST_S8
"""2,072,640: what every element of the product is, unless pairs of products are cut off at 32,767."""


def int8_saturates(open_model: Callable[[bytes], Runtime] | None = None) -> bool:
    """Multiply the largest bytes with each other and compare with the exact result.

    `open_model` loads an ONNX file from its bytes; without it, ONNX Runtime does, on this processor.
    """
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMulInteger", ["a", "b"], ["y"])],
        "probe",
        [onnx.helper.make_tensor_value_info("a", onnx.TensorProto.UINT8, [1, DEPTH])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT32, [1, WIDTH])],
        [onnx.helper.make_tensor("b", onnx.TensorProto.INT8, [DEPTH, WIDTH], [LARGEST_S8] * DEPTH * WIDTH)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    runtime = (open_model or _open_here)(model.SerializeToString())
    answer = runtime.run({"a": np.full((1, DEPTH), LARGEST_U8, np.uint8)})["y"]
    return not bool((answer == EXACT).all())


def _open_here(model: bytes) -> Runtime:
    return OnnxRuntime.from_bytes(model, options=RuntimeOptions())
