"""What users name, held against what it is for."""

from __future__ import annotations

import pytest

from forwardpass.core.metrics import METRICS
from forwardpass.core.slo import QualityFloor
from forwardpass.errors import InvalidOption, InvalidSamples, TensorMismatch
from forwardpass.wiring.inputs import check_floor, naming_samples


def test_no_share_of_a_score_may_be_all_of_it_but_an_error_may_double() -> None:
    for text in ("99%", "3"):
        check_floor(QualityFloor.parse(text), METRICS["accuracy"])
    check_floor(QualityFloor.parse("200%"), METRICS["mean-error"])
    with pytest.raises(InvalidOption) as caught:
        check_floor(QualityFloor.parse("100%"), METRICS["accuracy"])
    assert str(caught.value) == (
        "Invalid value '100%' for --max-drop: expected a share below 100%: of the metric 'accuracy', more is better, "
        "and nothing would be left of it."
    )


def test_a_tensor_that_does_not_fit_is_named_with_its_file_where_there_is_one() -> None:
    mismatch = TensorMismatch(tensor="x", reason="has shape [1, 3]", expected="float32[batch, 4]")
    with pytest.raises(InvalidSamples) as caught, naming_samples("samples.npz"):
        raise mismatch
    assert str(caught.value) == (
        "Cannot use the samples of 'samples.npz': the input 'x' has shape [1, 3]; expected float32[batch, 4]."
    )
    with pytest.raises(TensorMismatch), naming_samples(None):
        raise mismatch
