"""The full audit replaces the short one's verdict where there is one, and nothing else."""

from __future__ import annotations

from forwardpass.core.variants import BatchInvariance, Format, Precision, Variant
from forwardpass.optimize import Candidate, Optimization, Target, Verdict
from forwardpass.profile import InvarianceVerdict
from forwardpass.ship.auditing import FullAudits, travels, with_full_audits
from tests.models import MACHINE
from tests.unit.profile.examples import example_profile


def candidate(name: str, verdict: Verdict) -> Candidate:
    variant = Variant(name=name, format=Format.ONNX, precision=Precision.FP32, location=f"{name}.onnx")
    return Candidate(variant=variant, verdict=verdict, reason="made up", profile=example_profile(name))


def optimization() -> Optimization:
    return Optimization(
        candidates=(
            candidate("source", Verdict.REJECTED),
            candidate("onnx-fp32", Verdict.REJECTED),
            candidate("onnx-graph", Verdict.CHOSEN),
            candidate("int8-static", Verdict.REJECTED),
        ),
        metric="cosine",
        higher_is_better=True,
        floor_score=0.99,
        target=Target.LATENCY,
        slo=None,
        chosen="onnx-graph",
        reason="made up",
        not_tried=(),
        warnings=(),
        num_calibration=1,
        num_validation=1,
        num_test=1,
        machine=MACHINE,
    )


def test_the_chosen_variant_and_the_float_model_travel() -> None:
    names = [item.variant.name for item in optimization().candidates if travels(item, "onnx-fp32")]
    assert names == ["onnx-fp32", "onnx-graph"]


def test_a_full_audit_replaces_the_verdict_of_its_variant_alone() -> None:
    found = InvarianceVerdict(
        verdict=BatchInvariance.FIXED_SHAPES,
        max_difference=1e-7,
        worst_case="batch of 2, row 1, copies of itself",
        num_comparisons=10_000,
        is_same_across_threads=True,
        exact_batch_sizes=(2, 4),
    )
    before = optimization()
    after = with_full_audits(before, FullAudits(verdicts={"onnx-graph": found}))
    chosen = after.find("onnx-graph")
    assert chosen.profile is not None
    assert chosen.profile.invariance == found
    assert [item for item in after.candidates if item is not chosen] == [
        item for item in before.candidates if item.variant.name != "onnx-graph"
    ]
