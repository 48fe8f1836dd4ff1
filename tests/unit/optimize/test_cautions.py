"""Every weakness of a search is named, together with what to do about it; a sound one is left in peace."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from forwardpass.core.metrics import METRICS, Scores, user_metric
from forwardpass.core.samples import SampleGroup, Samples
from forwardpass.core.slo import QualityFloor
from forwardpass.errors import InvalidOption
from forwardpass.optimize.cautions import Findings, cautions

LABELS = np.arange(200) % 10


def samples(labels: np.ndarray[tuple[int], np.dtype[np.int64]] = LABELS) -> Samples:
    inputs = {"x": np.zeros((len(labels), 1), np.float32)}
    return Samples(groups=(SampleGroup(inputs=inputs, labels=labels),))


def accuracy(share: float, number: int = 200) -> Scores:
    items = (np.arange(number) < share * number).astype(np.float64)[:, None]
    return Scores(metric=METRICS["accuracy"], items=items)


SOUND = Findings(
    metric=METRICS["accuracy"],
    floor=QualityFloor(max_drop=0.01, is_relative=True),
    floor_score=0.94,
    num_calibration=200,
    range_distance=0.01,
    validation=samples(),
    scores={"source": accuracy(0.95), "float": accuracy(0.95), "int8": accuracy(0.90)},
    baseline="float",
)


def test_a_sound_search_has_nothing_to_be_cautious_about() -> None:
    assert list(cautions(SOUND)) == []


@pytest.mark.parametrize(
    ("findings", "words"),
    [
        (replace(SOUND, num_calibration=24), "Only 24 calibration samples"),
        (replace(SOUND, num_calibration=1), "Only 1 calibration sample:"),
        (replace(SOUND, floor_score=-4.05), "The limit, accuracy -4.05, is not above 0, the least there is"),
        (replace(SOUND, has_matrices=False), "no MatMul, Gemm or Conv with constant weights"),
        (
            replace(SOUND, range_distance=0.2),
            "second half of the 200 calibration samples still moved the ranges of INT8 by 20.0 %",
        ),
        (replace(SOUND, validation=samples(LABELS[:20])), "One of the 20 validation samples is more of accuracy than"),
        (replace(SOUND, validation=samples(LABELS * 0)), "All validation labels are the same"),
        (
            replace(SOUND, floor_score=0.99, scores={name: accuracy(1.0) for name in ("source", "float")}),
            "The metric accuracy is 1 for every sample and variant",
        ),
        (
            replace(SOUND, floor_score=0.96),
            "The float model float itself is below the limit: accuracy 0.95, limit",
        ),
    ],
)
def test_a_weakness_is_named_with_what_to_do(findings: Findings, words: str) -> None:
    (sentence,) = cautions(findings)
    assert words in sentence
    assert any(advice in sentence for advice in ("Give", "Use", "allow", "forwardpass profile"))


def test_a_source_that_is_never_right_is_told_to_look_at_its_labels() -> None:
    nothing = {name: accuracy(0.0) for name in ("source", "float")} | {"int8": accuracy(0.1)}
    (sentence,) = cautions(replace(SOUND, scores=nothing, floor_score=-0.01))
    assert sentence.startswith(
        "The source itself has accuracy 0, the least there is: every variant keeps the limit. Check"
    )


def test_variants_that_all_agree_with_the_source_are_no_fault_of_the_metric() -> None:
    metric = METRICS["agreement"]
    same = {name: Scores(metric=metric, items=np.ones((200, 1))) for name in ("source", "float")}
    assert list(cautions(replace(SOUND, metric=metric, scores=same))) == []


def test_a_metric_of_the_user_that_ignores_the_outputs_is_found() -> None:
    metric = user_metric("mine:constant", lambda outputs, labels: np.ones(1), higher_is_better=True)
    same = {name: Scores(metric=metric, items=np.full((200, 1), 0.5)) for name in ("source", "float")}
    (sentence,) = cautions(replace(SOUND, metric=metric, scores=same, floor_score=0.4))
    assert "is 0.5 for every sample and variant" in sentence


@pytest.mark.parametrize("max_drop", [-0.01, float("nan"), float("inf")])
def test_a_floor_above_the_source_itself_is_no_floor(max_drop: float) -> None:
    with pytest.raises(InvalidOption, match="would ask for a better score than the source itself has"):
        QualityFloor(max_drop=max_drop, is_relative=True)
