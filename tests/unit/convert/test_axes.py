"""Dynamic axes are those whose size differs between samples; what varies together has one name."""

from __future__ import annotations

import numpy as np

from forwardpass.convert.axes import dynamic_axes
from forwardpass.core.samples import SampleGroup, Samples


def test_tokens_and_their_mask_share_the_axis_of_their_length() -> None:
    groups = tuple(
        SampleGroup(inputs={"ids": np.ones((2, length), np.int64), "mask": np.ones((2, length), np.int64)})
        for length in (5, 9)
    )
    assert dynamic_axes(Samples(groups=groups)) == {
        "ids": {0: "batch", 1: "sequence"},
        "mask": {0: "batch", 1: "sequence"},
    }


def test_axes_that_vary_apart_have_names_of_their_own() -> None:
    groups = tuple(
        SampleGroup(inputs={"clip": np.ones((2, 80, frames), np.float32), "size": np.ones((2, width), np.float32)})
        for frames, width in ((100, 3), (300, 3), (300, 4))
    )
    axes = dynamic_axes(Samples(groups=groups))
    assert axes == {"clip": {0: "batch", 2: "clip_axis2"}, "size": {0: "batch", 1: "size_axis1"}}


def test_one_shape_has_a_dynamic_batch_only_unless_the_user_names_more() -> None:
    samples = Samples(groups=(SampleGroup(inputs={"x": np.ones((4, 8, 8), np.float32)}),))
    assert dynamic_axes(samples) == {"x": {0: "batch"}}
    assert dynamic_axes(samples, {"x": {2: "width"}}) == {"x": {0: "batch", 2: "width"}}
