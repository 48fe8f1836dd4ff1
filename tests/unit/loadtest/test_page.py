from __future__ import annotations

import html.parser
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from forwardpass.core.measurement import Machine
from forwardpass.core.slo import Slo
from forwardpass.loadtest.messages import Fate
from forwardpass.loadtest.page import render_load_page
from forwardpass.loadtest.results import CapacityReport, GoodputPoint, LoadResult, Recovery
from forwardpass.loadtest.search import Capacity, Trial
from forwardpass.loadtest.summary import Failure, LoadSummary, Requests, summarise
from tests.unit.loadtest.test_summary import ran

MACHINE = Machine(
    cpu="<b>fast</b>", instruction_sets=(), num_cores=2, memory_bytes=1, os="linux", python="3", runtimes=()
)


class TagReader(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)


def a_summary(*, num_requests: int = 1000, all_fail: bool = False) -> LoadSummary:
    scheduled_s = np.linspace(0, 9.99, num_requests)
    fates = np.full(num_requests, Fate.TIMED_OUT if all_fail else Fate.ANSWERED, np.uint8)
    run = ran(scheduled_s, np.linspace(0.001, 0.2, num_requests), fates=fates.tobytes())
    return summarise(
        Requests.from_run(run),
        begin_s=0.0,
        duration_s=10.0,
        slo=Slo(percent=99, limit_s=0.1),
        ran=run,
        max_connections=100,
    )


def a_result(summary: LoadSummary | None = None, capacity: CapacityReport | None = None) -> LoadResult:
    return LoadResult(
        target="http://<script>, model shop, 1 row",
        load="server, Poisson arrivals",
        slo="p99=100ms",
        is_met=False,
        summary=summary,
        capacity=capacity,
        took_s=12.0,
        machine=MACHINE,
    )


def a_search(*, goodput: bool = True, rate_per_s: float = 100.0) -> CapacityReport:
    point = GoodputPoint(
        load=0.5,
        offered_per_s=50,
        throughput_per_s=50,
        goodput_per_s=49,
        share_in_time=0.98,
        p50_s=0.01,
        p99_s=None,
        failures=(Failure(what="connection refused", num_requests=3),),
        lag_p99_s=0.0,
    )
    recovery = Recovery(overload=2.0, overload_s=3.5, load_after=0.5, seconds=None, watched_s=5.0, normal_s=0.1)
    capacity = Capacity(
        rate_per_s=rate_per_s,
        kept_per_s=rate_per_s,
        missed_per_s=None,
        low_per_s=rate_per_s / 1.1,
        high_per_s=None,
        is_lower_bound=True,
        trials=(Trial(rate_per_s=100, share_in_time=1.0),),
    )
    return CapacityReport(
        capacity=capacity,
        lone_p50_s=0.01,
        trial_s=3.0,
        at_capacity=a_summary() if rate_per_s else None,
        goodput=(point, replace(point, load=2.0, offered_per_s=200)) if goodput else (),
        recovery=recovery if goodput else None,
        notes=("The budget ended the search.",),
    )


RESULTS = {
    "run": a_result(a_summary()),
    "nothing answered": a_result(a_summary(all_fail=True)),
    "one request": a_result(a_summary(num_requests=1)),
    "search": a_result(capacity=a_search()),
    "search without more": a_result(capacity=a_search(goodput=False)),
    "no capacity": a_result(capacity=a_search(goodput=False, rate_per_s=0.0)),
}


@pytest.mark.parametrize("result", RESULTS.values(), ids=RESULTS.keys())
def test_every_result_becomes_a_page_that_loads_nothing_and_runs_nothing(result: LoadResult) -> None:
    page = render_load_page(result)
    reader = TagReader()
    reader.feed(page)
    assert {"script", "img", "link", "b"} & set(reader.tags) == set()
    assert "&lt;script&gt;" in page
    assert "nan" not in page.lower().replace("finance", "")


@pytest.mark.parametrize("result", RESULTS.values(), ids=RESULTS.keys())
def test_every_result_is_a_json_document(result: LoadResult) -> None:
    document = msgspec.json.decode(msgspec.json.encode(result))
    assert document["target"] == result.target


def test_what_was_found_is_on_top() -> None:
    page = render_load_page(RESULTS["search"])
    for words in ("≥ 100/s", "Interval: 90.9/s to unknown.", "STUCK", "3 connection refused", "The budget ended"):
        assert words in page
