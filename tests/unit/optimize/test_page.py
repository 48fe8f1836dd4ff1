"""The page of a search: complete, self-contained, and safe with any name."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwardpass.convert import Conversion
from forwardpass.core.measurement import Interval, Measurement
from forwardpass.core.tensors import Signature
from forwardpass.core.variants import Format, Precision, Recipe, Step, Variant
from forwardpass.optimize import (
    Candidate,
    FileHash,
    LayerEvidence,
    NotTried,
    Optimization,
    Provenance,
    SearchStep,
    Target,
    Verdict,
)
from forwardpass.optimize.page import render_optimization_page
from forwardpass.optimize.trade_offs_page import pareto_front
from tests.models import MACHINE
from tests.unit.profile.examples import example_profile
from tests.unit.profile.test_page import HOSTILE, outline


def exactly(value: float) -> Measurement:
    return Measurement(value=value, unit="ratio", interval=Interval(low=value, high=value), num_repetitions=5)


def candidate(name: str, verdict: Verdict, *, reason: str, row_s: float = 2e-3, score: float = 0.97) -> Candidate:
    step = Step(
        operation="quantise-static",
        parameters=(
            ("calibration", "mse"),
            ("errors_by_calibration", "minmax: 3.00%, mse: 2.00%"),
            ("ranges_from_final_by_samples", "1: 40.0 %, 2: 0.0 %"),
        ),
    )
    return Candidate(
        variant=Variant(
            name=name, format=Format.ONNX, precision=Precision.FP32, location="x.onnx", recipe=Recipe(steps=(step,))
        ),
        verdict=verdict,
        reason=reason,
        profile=example_profile(name, row_s=row_s),
        validation=exactly(score),
        test=exactly(score),
        test_difference=exactly(0.0),
        relative_error=exactly(0.01),
        gain=exactly(2e-3 / row_s),
        files=(FileHash(name=f"{name}.onnx", sha256="ab" * 32),),
    )


def optimization() -> Optimization:
    return Optimization(
        candidates=(
            candidate("onnx-fp32", Verdict.KEPT, reason="the float model"),
            candidate("int8-static", Verdict.CHOSEN, reason="twice as fast", row_s=1e-3),
            candidate("int8-dynamic", Verdict.REJECTED, reason="accuracy 0.5 is below the limit", score=0.5),
            Candidate(
                variant=Variant(name="fp16-storage", format=Format.ONNX, precision=Precision.FP16_STORAGE, location=""),
                verdict=Verdict.FAILED,
                reason="the writer fell over",
            ),
        ),
        metric="accuracy",
        higher_is_better=True,
        floor_score=0.96,
        target=Target.LATENCY,
        slo=None,
        chosen="int8-static",
        reason="2.00 times as fast",
        not_tried=(NotTried(what="FP16 arithmetic", reason="it is slower", evidence="measured"),),
        warnings=("Only 9 calibration samples.",),
        num_calibration=9,
        num_validation=20,
        num_test=30,
        machine=MACHINE,
        layers=(LayerEvidence(name="conv1", what="Conv 3x3", error=1e-4, gain=exactly(1.7), reason="a gain"),),
        path=(SearchStep(what="int8-static", outcome="made and scored", score=0.97),),
        left_out=("int8-mixed was not made: no time",),
        provenance=Provenance(
            source="shop.models:build",
            source_sha256="cd" * 32,
            samples=(("calibration", "ef" * 32),),
            packages=(("forwardpass", "0.1"), ("onnx", "1.23")),
            command="forwardpass optimize shop.models:build --data samples.npz",
        ),
    )


def conversion() -> Conversion:
    variant = Variant(name="onnx-fp32", format=Format.ONNX, precision=Precision.FP32, location="x.onnx")
    return Conversion(
        variant=variant,
        signature=Signature(inputs=(), outputs=()),
        opset=20,
        exporter="dynamo",
        parity=(),
        tolerance=1e-4,
    )


def test_the_page_tells_the_choice_every_reason_the_path_and_how_to_make_it_again() -> None:
    page = outline(render_optimization_page("shop", conversion(), optimization()))
    for words in (
        "twice as fast", "accuracy 0.5 is below the limit", "the writer fell over",
        "Not tried: FP16 arithmetic, because it is slower (measured).", "Left out: int8-mixed was not made: no time.",
        "Only 9 calibration samples.", "made and scored", "conv1", "1.70 (1.70 to 1.70)",
        "forwardpass optimize shop.models:build --data samples.npz", "forwardpass 0.1, onnx 1.23", "ab" * 32, "cd" * 32,
        "ef" * 32, "quantise-static(calibration=mse, errors_by_calibration=minmax",
        "Distance of the ranges from those of all samples", "minmax: 3.00%, mse: 2.00%",
        "Latency against accuracy", "Size against accuracy", "Cold start against accuracy", "Latency against size",
    ):  # fmt: skip
        assert words in page.text
    assert "script" not in page.tags
    assert not {"src", "href", "onload"} & page.attributes


def test_a_screen_reader_hears_what_a_table_is_and_a_keyboard_can_scroll_it() -> None:
    page = render_optimization_page("shop", conversion(), optimization())
    assert '<div class="scroll" tabindex="0" role="region" aria-label="Variants">' in page
    assert page.count('<div class="scroll"') == page.count('<div class="scroll" tabindex="0" role="region" aria-label=')


def test_no_name_gets_out_of_its_place() -> None:
    found = optimization()
    assert found.provenance is not None
    hostile = [
        replace(it, reason=HOSTILE, variant=replace(it.variant, name=f"{HOSTILE}{number}"))
        for number, it in enumerate(found.candidates)
    ]
    page = render_optimization_page(
        HOSTILE,
        conversion(),
        replace(
            found,
            candidates=tuple(hostile),
            chosen=hostile[1].variant.name,
            provenance=replace(found.provenance, command=HOSTILE, source=HOSTILE),
        ),
    )
    assert outline(page).text.count(HOSTILE) >= 8
    assert "<img" not in page


def test_evidence_from_before_there_was_a_provenance_still_makes_a_page() -> None:
    page = render_optimization_page("shop", conversion(), replace(optimization(), provenance=None))
    assert "How to make it again" in page


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_every_point_is_on_the_front_or_beaten_by_one_that_is(whole: list[tuple[int, int]]) -> None:
    points = [(float(x), float(y)) for x, y in whole]
    front = [point for point, is_best in zip(points, pareto_front(points), strict=True) if is_best]
    assert front
    for point in points:
        assert point in front or any(x <= point[0] and y <= point[1] for x, y in front)
    for x, y in front:
        assert not any((a < x and b <= y) or (a <= x and b < y) for a, b in points)
    order = random.Random(1).sample(range(len(points)), len(points))
    shuffled = pareto_front([points[at] for at in order])
    assert [pareto_front(points)[at] for at in order] == shuffled


@pytest.mark.parametrize("higher", [True, False])
def test_the_front_follows_the_direction_of_the_metric(higher: bool) -> None:
    page = render_optimization_page("shop", conversion(), replace(optimization(), higher_is_better=higher))
    assert ("Latency against accuracy. Not beaten: int8-static.<" in page) is higher


def test_a_column_of_nodes_that_nothing_is_known_for_is_left_out() -> None:
    page = render_optimization_page("model", conversion(), optimization())
    assert "Error of 8 bits" in page
    assert "Static inside" not in page
