"""Latency targets and floors as users write them."""

from __future__ import annotations

import pytest

from forwardpass.core.slo import QualityFloor, Slo
from forwardpass.errors import InvalidOption


@pytest.mark.parametrize(
    ("text", "percent", "limit_s"), [("p95=50ms", 95, 0.05), ("p99.9 = 2s", 99.9, 2), ("p50=250us", 50, 0.00025)]
)
def test_a_target_is_a_percentile_and_a_limit(text: str, percent: float, limit_s: float) -> None:
    assert Slo.parse(text) == Slo(percent=percent, limit_s=limit_s)


@pytest.mark.parametrize("text", ["50ms", "p95=50", "p95=-1ms", "p95=0ms", "p100=5ms", "p95=50min", "p٩=5ms"])
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        Slo.parse(text)
    assert (
        str(caught.value) == f"Invalid value '{text}' for --slo: expected a percentile and a limit, such as p95=50ms."
    )


def test_a_floor_is_a_share_or_an_amount() -> None:
    assert QualityFloor.parse("1%").limit(0.9, higher_is_better=True) == pytest.approx(0.891)
    assert QualityFloor.parse("0.02").limit(0.9, higher_is_better=True) == pytest.approx(0.88)
    assert QualityFloor.parse("10%").limit(0.2, higher_is_better=False) == pytest.approx(0.22)
    assert QualityFloor.parse("1%").limit(0.0, higher_is_better=False) == pytest.approx(0.01)


@pytest.mark.parametrize("text", ["", "-1%", "lots", "nan", "inf%"])
def test_a_floor_that_is_neither_is_refused(text: str) -> None:
    with pytest.raises(InvalidOption, match=r"expected a share such as 1% or an amount such as 0\.01"):
        QualityFloor.parse(text)
