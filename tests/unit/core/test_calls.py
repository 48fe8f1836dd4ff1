"""Calls to measure with have the right sizes, and come in the shapes of the samples."""

from __future__ import annotations

import numpy as np

from forwardpass.core.calls import calls_from_samples, random_calls
from forwardpass.core.samples import SampleGroup, Samples
from forwardpass.core.tensors import Signature, TensorSpec


def test_calls_from_samples_repeat_real_rows_and_mix_no_shapes() -> None:
    groups = tuple(SampleGroup(inputs={"x": np.full((count, width), width)}) for count, width in ((90, 3), (10, 7)))
    calls = calls_from_samples(Samples(groups=groups), (1, 32))
    assert {call["x"].shape[0] for call in calls[32]} == {32}
    assert all((call["x"] == call["x"].shape[1]).all() for size in calls for call in calls[size])
    assert sum(call["x"].shape[1] == 3 for call in calls[1]) > len(calls[1]) / 2


def test_made_up_calls_follow_the_signature() -> None:
    spec = TensorSpec(name="ids", dtype="int64", shape=("batch", "sequence"))
    signature = Signature(inputs=(spec,), outputs=(spec,))
    calls = random_calls(signature, (1, 4), {"sequence": 9})
    assert [calls[size][0]["ids"].shape for size in calls] == [(1, 9), (4, 9)]
    assert signature.validate(calls[4][0]) == 4
