"""Prices are dated, checked and applied to what a row keeps busy."""

from __future__ import annotations

from datetime import date

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwardpass.cli.settings import optimize_settings
from forwardpass.errors import InvalidOption
from forwardpass.optimize import Prices, Target
from forwardpass.optimize.gain import cell_row_usd, gain_at
from forwardpass.optimize.prices import DEFAULT_PRICES, age_warning, known_prices, load_prices
from tests.unit.profile.examples import example_profile

amounts = st.floats(0, 1)
threads = st.integers(1, 8)


def test_every_row_of_the_table_says_what_where_and_when() -> None:
    assert DEFAULT_PRICES in known_prices()
    for name, prices in known_prices().items():
        assert name == prices.name
        assert prices.what
        assert prices.region
        assert date.fromisoformat(f"{prices.as_of}-01") < date(2026, 12, 1)
        assert prices.usd_per_second(num_threads=1, memory_bytes=2**30) > 0


@given(amounts, amounts, amounts, amounts, threads, st.floats(0, 2**34), st.floats(0, 10))
def test_more_time_threads_or_memory_never_cost_less(
    vcpu: float, gb: float, share: float, fee: float, num_threads: int, memory: float, row_s: float
) -> None:
    prices = Prices(vcpu_hour_usd=vcpu, gb_hour_usd=gb, gb_per_vcpu=share, request_usd=fee)
    cost = prices.row_usd(row_s=row_s, num_threads=num_threads, memory_bytes=memory)
    assert cost >= fee
    assert prices.row_usd(row_s=row_s + 1, num_threads=num_threads, memory_bytes=memory) >= cost
    assert prices.row_usd(row_s=row_s, num_threads=num_threads + 1, memory_bytes=memory) >= cost
    assert prices.row_usd(row_s=row_s, num_threads=num_threads, memory_bytes=memory * 2) >= cost


def test_a_whole_machine_costs_its_price_when_all_of_it_is_busy() -> None:
    machine = load_prices("aws-t3.medium")
    hour = machine.usd_per_second(num_threads=2, memory_bytes=2**30) * 3600
    assert hour == pytest.approx(0.0416)
    assert machine.usd_per_second(num_threads=1, memory_bytes=4 * 2**30) * 3600 == pytest.approx(0.0416)


def test_where_requests_never_share_a_call_only_single_rows_count() -> None:
    profile = example_profile(batch_sizes=(1, 8))
    shared = Prices(vcpu_hour_usd=1.0)
    alone = Prices(vcpu_hour_usd=1.0, one_request_at_a_time=True)
    assert cell_row_usd(profile, shared) < cell_row_usd(profile, alone)


def test_below_the_least_time_that_is_billed_no_variant_is_cheaper() -> None:
    slow = example_profile("fp32", round_p50_s=(8e-4,) * 5)
    fast = example_profile("int8", row_s=1e-3, round_p50_s=(1e-4,) * 5)
    steps = Prices(gb_hour_usd=1.0, billed_step_s=1e-3, one_request_at_a_time=True)
    assert gain_at(Target.COST, fast, slow, prices=steps).value == pytest.approx(1.0)


def test_a_fee_for_the_request_dilutes_what_a_faster_variant_saves() -> None:
    slow = example_profile("fp32", round_p50_s=(2e-3,) * 5)
    fast = example_profile("int8", row_s=1e-3, round_p50_s=(1e-3,) * 5)
    free, paid = Prices(vcpu_hour_usd=1.0), Prices(vcpu_hour_usd=1.0, request_usd=2e-3 / 3600)
    assert gain_at(Target.COST, fast, slow, prices=free).value == pytest.approx(2.0)
    assert gain_at(Target.COST, fast, slow, prices=paid).value == pytest.approx(4 / 3)


@pytest.mark.parametrize(
    ("today", "is_old"), [(date(2026, 3, 31), False), (date(2027, 3, 1), False), (date(2027, 4, 1), True)]
)
def test_prices_of_more_than_a_year_ago_are_warned_of(today: date, is_old: bool) -> None:
    warning = age_warning(load_prices("aws-fargate"), today)
    assert bool(warning) is is_old
    if is_old:
        assert warning == (
            "The prices of AWS Fargate, Linux on x86 were looked up 13 months ago (2026-03): check them, and give your "
            "own with --prices FILE or --vcpu-hour-usd and --gb-hour-usd."
        )
    assert not age_warning(Prices(vcpu_hour_usd=1.0), today)


def settings_with(prices: str = DEFAULT_PRICES, vcpu: float | None = None, gb: float | None = None) -> Prices:
    return optimize_settings(
        max_drop=None, floor=None, target="cost", slo=None, pin_processor=False, budget=None, routes="onnx",
        prices=prices, vcpu_hour_usd=vcpu, gb_hour_usd=gb, quick=True,
    ).prices  # fmt: skip


def test_numbers_of_the_user_replace_those_of_the_table_and_are_not_dated() -> None:
    own = settings_with(vcpu=0.02)
    assert (own.vcpu_hour_usd, own.gb_hour_usd, own.as_of) == (0.02, 0.004445, "")
    assert str(own) == "prices of your own instead of those of AWS Fargate, Linux on x86"
    assert str(settings_with()) == "AWS Fargate, Linux on x86, us-east-1, as of 2026-03"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"vcpu_hour_usd": -1}', "expected prices of at least 0"),
        ('{"what": "nothing"}', "expected a price for processors, for memory, or for both"),
        ('{"vcpu_hour_usd": 1, "as_of": "March"}', "'as_of' as year and month, such as 2026-03"),
        ('{"vcpu_hours_usd": 1}', "unknown field `vcpu_hours_usd`"),
        ("not json", "an object such as"),
    ],
)
def test_a_price_file_that_cannot_be_used_is_told_in_a_sentence(
    text: str, words: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("prices") / "prices.json"
    path.write_text(text)
    with pytest.raises(InvalidOption) as caught:
        settings_with(prices=str(path))
    assert words in str(caught.value)
    path.write_bytes(msgspec.json.encode({"what": "our cluster", "vcpu_hour_usd": 0.03}))
    assert settings_with(prices=str(path)).what == "our cluster"


def test_prices_that_are_not_there_and_prices_of_nothing_are_refused() -> None:
    with pytest.raises(InvalidOption, match=r"'aws-fargat' for --prices: expected one of aws-fargate, aws-lambda"):
        settings_with(prices="aws-fargat")
    with pytest.raises(InvalidOption, match="a price for processors, for memory, or for both"):
        settings_with(vcpu=0.0, gb=0.0)
