"""The profile page: complete, self-contained, and safe with any name."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from forwardpass.core.operators import NodeTrace, Roof, break_down
from forwardpass.core.variants import BatchInvariance
from forwardpass.profile import InvarianceVerdict, PaddingFinding
from forwardpass.profile.page import render_profile_page
from tests.models import MACHINE
from tests.unit.profile.examples import example_profile

HOSTILE = "<img src=x onerror=alert(1)>&\"'"
VOID = {"meta"}


class Outline(HTMLParser):
    """Checks that tags close in order, and collects tags, attributes and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def outline(page: str) -> Outline:
    parser = Outline()
    parser.feed(page)
    assert parser.open == []
    return parser


@pytest.fixture(scope="module")
def page() -> str:
    fast = example_profile("int8", row_s=1e-3, round_p50_s=(1e-3,) * 5, batch_sizes=(1, 4), thread_counts=(1, 2))
    slow = example_profile("fp32", row_s=2e-3, round_p50_s=(2e-3,) * 5, batch_sizes=(1, 4), thread_counts=(1, 2))
    return render_profile_page([slow, fast], MACHINE, "shop model")


def test_the_page_says_at_which_sizes_answers_agree_and_what_was_left_out() -> None:
    found = InvarianceVerdict(
        verdict=BatchInvariance.FIXED_SHAPES,
        max_difference=3e-7,
        worst_case="batch of 8, row 2, ordinary neighbours",
        num_comparisons=1234,
        exact_batch_sizes=(2, 3, 4, 8),
        covered_batch_sizes=(1, 2, 3, 4, 8),
        gaps=("Not covered for lack of time: batch sizes 5-7.",),
        padding=PaddingFinding(
            axis="length", max_difference=0.5, worst_case="4 of 8 positions", num_comparisons=6, num_flips=1
        ),
        thread_counts=(1, 2, 4),
        is_same_across_threads=False,
        differing_thread_counts=(4,),
        is_same_in_fresh_processes=True,
        num_fresh_processes=3,
    )
    text = outline(render_profile_page([replace(example_profile(), invariance=found)], MACHINE, "model")).text
    for expected in (
        "SAME AT FIXED SIZES",
        "fp32: the same bytes in batches of 2-4, 8 rows: pad up to the next of them; 1,234 comparisons,",
        "batch sizes 1-4, 8 covered, worst difference 3e-07 (batch of 8, row 2, ordinary neighbours).",
        "fp32: other bytes with 4 threads than with 1: keep the number fixed; the same bytes in 3 fresh processes.",
        "fp32: NOT the same when padded to a longer neighbour, 6 comparisons,",
        "worst difference 0.5 (4 of 8 positions), 1 decision differs.",
        "fp32: Not covered for lack of time: batch sizes 5-7.",
        "0 variants to the last bit, 1 more at fixed batch sizes.",
    ):
        assert expected in text


def test_the_page_loads_nothing_and_runs_nothing(page: str) -> None:
    parsed = outline(page)
    assert not parsed.tags & {"script", "link", "img", "iframe", "object"}
    assert not parsed.attributes & {"src", "href", "srcset"}
    assert not [name for name in parsed.attributes if name.startswith("on")]
    assert not re.search(r"url\(|@import", page)


def test_the_page_says_what_was_found_and_what_was_not_measured(page: str) -> None:
    text = outline(page).text.replace("\u00a0", " ")
    assert "2.00× as fast as fp32 (2.00× to 2.00×)" in text
    assert "fp32, 1 thread, batch size 64: not measured; 9 calls would take about 9 s." in text
    for heading in ("Latency and throughput", "Cold start and memory", "Same answer", "All numbers"):
        assert heading in text
    assert MACHINE.cpu in text


def test_interference_is_on_top_of_the_page() -> None:
    guilty = example_profile("dynamic", verdict=BatchInvariance.INTERFERENCE)
    text = outline(render_profile_page([guilty], MACHINE, "m")).text
    assert "Requests change each other's answers in dynamic." in text[: text.index("Latency and throughput")]


def test_names_from_outside_stay_text() -> None:
    page = render_profile_page([example_profile(HOSTILE)], MACHINE, HOSTILE)
    parsed = outline(page)
    assert "img" not in parsed.tags
    assert HOSTILE in parsed.text


def test_the_page_says_where_the_time_goes() -> None:
    traces = [
        NodeTrace(
            name=f"product_{number}",
            operator="MatMul",
            seconds=(1e-3 * number,),
            input_shapes=((8, 1000), (1000, 10)),
            output_shapes=((8, 10),),
            num_bytes=4000,
        )
        for number in range(1, 16)
    ]
    found = break_down(traces, Roof(flops_per_s=1e9, bytes_per_s=1e9), num_threads=1, batch_size=8)
    text = outline(render_profile_page([replace(example_profile(), operators=(found,))], MACHINE, "model")).text
    for expected in ("Where the time goes", "product_15", "160 k", "3 other nodes", "the roof is 1 G/s in float32"):
        assert expected in text
    assert "Where the time goes" not in outline(render_profile_page([example_profile()], MACHINE, "model")).text
