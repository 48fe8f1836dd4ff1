"""The table of a search on a terminal."""

from __future__ import annotations

from forwardpass.cli.candidates import one_for_each_reason
from forwardpass.core.variants import Format, Precision, Variant
from forwardpass.optimize import Candidate, Verdict


def needless(name: str, reason: str) -> Candidate:
    variant = Variant(name=name, format=Format.ONNX, precision=Precision.INT8_STATIC, location="")
    return Candidate(variant=variant, verdict=Verdict.NEEDLESS, reason=reason)


def test_variants_with_nothing_to_gain_for_one_reason_are_told_as_one() -> None:
    candidates = [needless("a", "only trees"), needless("b", "only trees"), needless("c", "slower")]
    assert [names for _, names in one_for_each_reason(candidates)] == ["a and 1 more", "c"]
