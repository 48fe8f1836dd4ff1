"""The probe tells processors apart that it does not run on: each is a fake that multiplies as that kind does."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from forwardpass.core.tensors import Array, Signature, Tensors
from forwardpass.optimize.probe import int8_saturates


class Processor:
    """Multiplies bytes; without VNNI, sums of two products are cut off at 16 bits."""

    name = "fake"
    version = "0"
    signature = Signature(inputs=(), outputs=())

    def __init__(self, model: bytes, *, cuts_off: bool) -> None:
        self._weights = numpy_helper.to_array(onnx.load_from_string(model).graph.initializer[0]).astype(np.int64)
        self._cuts_off = cuts_off

    def run(self, tensors: Tensors) -> dict[str, Array]:
        products = tensors["a"].astype(np.int64)[:, :, None] * self._weights[None]
        pairs = products.reshape(len(products), -1, 2, products.shape[-1]).sum(axis=2)
        if self._cuts_off:
            pairs = np.clip(pairs, np.iinfo(np.int16).min, np.iinfo(np.int16).max)
        return {"y": pairs.sum(axis=1).astype(np.int32)}


@pytest.mark.parametrize("cuts_off", [True, False])
def test_a_processor_that_cuts_sums_off_is_told_from_one_that_does_not(cuts_off: bool) -> None:
    assert int8_saturates(lambda model: Processor(model, cuts_off=cuts_off)) is cuts_off
