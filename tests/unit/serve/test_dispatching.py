"""The dispatcher in virtual time, in front of workers that take as long as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar, cast
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forwardpass.core import regathering
from forwardpass.core.batching import BatchQueue
from forwardpass.core.latency import LatencyEstimate, LatencyPoint, LatencyTable
from forwardpass.core.simulation import AllCores, Arrival, Fate, poisson_arrivals, simulate
from forwardpass.core.tensors import Array, Signature, TensorSpec
from forwardpass.core.wide_runs import WideRuns
from forwardpass.errors import DeadlineExceeded, NotReady, Overloaded, RequestError
from forwardpass.serve.dispatching import Dispatcher
from forwardpass.serve.metrics import ModelMetrics
from forwardpass.serve.padding import ShapePadding
from forwardpass.serve.process import WorkerListener, WorkerProcess
from forwardpass.serve.request import Request, Result
from tests.fakes.virtual_time import VirtualTimeLoop
from tests.fakes.workers import TimedWorker

T = TypeVar("T")

TOKENS = TensorSpec(name="tokens", dtype="int64", shape=("batch", "length"))
SIGNATURE = Signature(inputs=(TOKENS,), outputs=(TOKENS,))
TABLE = LatencyTable(
    num_threads=1,
    points=tuple(LatencyPoint(batch_size=n, p50_s=5e-3 + 0.5e-3 * n, p95_s=6e-3 + 0.5e-3 * n) for n in (1, 8, 32)),
)


def service(num_rows: int) -> float:
    """Return an uneven number of seconds: of workers that are done at the same time, either may be the first."""
    return 5e-3 + 0.517131e-3 * num_rows


def wide_service(num_rows: int) -> float:
    """Return how long the first worker takes with all cores."""
    return 0.617 * service(num_rows)


def in_virtual_time(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    loop = VirtualTimeLoop()
    try:
        return loop.run_until_complete(work())
    finally:
        loop.close()


class Rig:
    """A dispatcher with its fakes, on the loop that runs."""

    def __init__(
        self,
        loop: VirtualTimeLoop,
        queue: BatchQueue,
        *,
        num_workers: int = 1,
        axes: Sequence[str] = (),
        unseen_s: float = 0.0,
        wide_runs: WideRuns | None = None,
    ) -> None:
        self._has_wide = wide_runs is not None
        self._unseen_s = unseen_s
        self.loop = loop
        self.padding = ShapePadding(SIGNATURE, axes)
        self.dispatcher = Dispatcher(
            model="m",
            signature=SIGNATURE,
            queue=queue,
            padding=self.padding,
            metrics=ModelMetrics(slo_s=None),
            hang_s=60.0,
            wide_runs=wide_runs,
            clock=loop.time,
        )
        self.workers: list[TimedWorker] = []
        for _ in range(num_workers):
            self.dispatcher.add_worker(self._make)

    def _make(self, listener: WorkerListener) -> WorkerProcess:
        wide = wide_service if self._has_wide and not self.workers else None
        self.workers.append(TimedWorker(listener, service, unseen_s=self._unseen_s, wide_service=wide))
        return cast(WorkerProcess, self.workers[-1])

    def submit(self, tokens: Array, timeout_s: float, answer: Callable[[Result], None]) -> None:
        tensors = {"tokens": tokens}
        self.dispatcher.submit(
            Request(
                num_rows=len(tokens),
                shape_key=SIGNATURE.shape_key(tensors),
                row_size=tokens.shape[1],
                family=self.padding.family(tensors),
                deadline_s=self.loop.time() + timeout_s,
                timeout_s=timeout_s,
                tensors=tensors,
                answer=answer,
            )
        )


def new_queue(num_workers: int = 1, **changes: Any) -> BatchQueue:
    named = {"max_batch_rows": 32, "max_queue_rows": 200, "num_workers": num_workers} | changes
    return BatchQueue(latency=LatencyEstimate(TABLE), **named)


def new_wide_runs() -> WideRuns:
    points = (
        LatencyPoint(batch_size=point.batch_size, p50_s=0.6 * point.p50_s, p95_s=0.6 * point.p95_s)
        for point in TABLE.points
    )
    return WideRuns(narrow=TABLE, wide=LatencyTable(num_threads=2, points=tuple(points)))


@pytest.mark.parametrize("load", [0.005, 0.02, 0.05, 0.1, 0.5, 0.95, 1.3, 2.5])
@pytest.mark.parametrize(("num_workers", "has_wide"), [(1, False), (2, False), (2, True), (3, True)])
@pytest.mark.parametrize("slo_s", [0.05, 0.025])
def test_the_dispatcher_does_what_the_simulation_says(
    load: float, num_workers: int, has_wide: bool, slo_s: float
) -> None:
    """Every request has the same fate at the same time, under every load, and lone ones run on all cores."""
    generator = np.random.default_rng(int(load * 10))
    rate = load * num_workers * 32 / service(32)
    arrivals = poisson_arrivals(rate, duration_s=2.0, timeout_s=slo_s, generator=generator)
    expected = simulate(
        arrivals,
        new_queue(num_workers),
        service=lambda rows, size: service(rows),
        num_workers=num_workers,
        all_cores=AllCores(runs=new_wide_runs(), service=lambda rows, size: wide_service(rows)) if has_wide else None,
    )
    num_wide: list[int] = []
    fates = [Fate.EXPIRED] * len(arrivals)
    latencies_s = [float("nan")] * len(arrivals)

    async def play() -> None:
        loop = cast(VirtualTimeLoop, asyncio.get_running_loop())
        rig = Rig(
            loop, new_queue(num_workers), num_workers=num_workers, wide_runs=new_wide_runs() if has_wide else None
        )

        def arrive(number: int, arrival: Arrival) -> None:
            def answer(result: Result) -> None:
                if isinstance(result, RequestError):
                    assert isinstance(result, DeadlineExceeded)
                else:
                    assert result["tokens"].tolist() == [[number]]
                    fates[number] = Fate.ANSWERED
                    latencies_s[number] = loop.time() - arrival.at_s

            try:
                rig.submit(np.array([[number]]), arrival.timeout_s, answer)
            except Overloaded:
                fates[number] = Fate.REFUSED

        for number, arrival in enumerate(arrivals):
            loop.call_at(arrival.at_s, arrive, number, arrival)
        done = loop.create_future()
        loop.call_at(10.0, done.set_result, None)
        await done
        assert rig.dispatcher.is_idle
        num_wide.append(sum(worker.num_wide for worker in rig.workers))

    in_virtual_time(play)
    assert fates == list(expected.fates)
    assert num_wide == [sum(batch.is_wide for batch in expected.batches)]
    assert not has_wide or load > 0.02 or num_wide[0] > 0.1 * len(arrivals)
    np.testing.assert_allclose(latencies_s, expected.latencies_s, rtol=1e-6)


BACK_S = 0.2e-3
"""A client's next request comes so much later than its answer."""


def workers_of_a_crowd(
    num_clients: int, *, is_waited_for: bool, num_workers: int = 1, has_wide: bool = False
) -> list[TimedWorker]:
    """Return the workers, after clients that ask again soon after an answer, one after the other."""
    ran: list[TimedWorker] = []

    async def play() -> None:
        loop = cast(VirtualTimeLoop, asyncio.get_running_loop())
        wide_runs = new_wide_runs() if has_wide else None
        rig = Rig(loop, new_queue(num_workers), num_workers=num_workers, wide_runs=wide_runs)
        left = 400
        done = loop.create_future()

        def ask() -> None:
            rig.submit(np.array([[1]]), 60.0, answer)

        def answer(result: Result) -> None:
            nonlocal left
            left -= 1
            if not left:
                done.set_result(None)
            elif left > 0:
                loop.call_later(BACK_S * (1 + left % num_clients // 2), ask)

        for _ in range(num_clients):
            ask()
        await done
        ran.extend(rig.workers)

    with patch.object(regathering, "SHARE_OF_SAVING", 0.4 if is_waited_for else 0.0):
        in_virtual_time(play)
    return ran


def batches_of_a_crowd(num_clients: int, *, is_waited_for: bool, num_workers: int = 1) -> list[list[int]]:
    """Return each worker's sizes of batches."""
    ran = workers_of_a_crowd(num_clients, is_waited_for=is_waited_for, num_workers=num_workers)
    return [worker.num_rows for worker in ran]


def test_clients_that_were_answered_together_share_a_batch_again() -> None:
    for num in (2, 4, 7):
        assert np.mean(batches_of_a_crowd(num, is_waited_for=True)[0]) > 0.95 * num
        assert np.mean(batches_of_a_crowd(num, is_waited_for=False)[0]) < 0.65 * num


@pytest.mark.parametrize("num_clients", [2, 3, 4, 8])
def test_a_crowd_is_shared_by_all_workers(num_clients: int) -> None:
    """No worker is idle while another one waits for a larger batch, or takes what would be enough for both."""
    ran = batches_of_a_crowd(num_clients, is_waited_for=True, num_workers=2)
    total = [sum(sizes) for sizes in ran]
    assert min(total) > 0.3 * sum(total)
    assert np.mean([size for sizes in ran for size in sizes]) > 0.9 * (num_clients // 2)


def test_a_lone_client_is_never_made_to_wait() -> None:
    async def play() -> float:
        loop = cast(VirtualTimeLoop, asyncio.get_running_loop())
        rig = Rig(loop, new_queue())
        for _ in range(20):
            answered = loop.create_future()
            rig.submit(np.array([[1]]), 60.0, answered.set_result)
            await answered
        return loop.time()

    assert in_virtual_time(play) == pytest.approx(20 * service(1))


def test_a_lone_client_has_all_cores() -> None:
    (first, second) = workers_of_a_crowd(1, is_waited_for=True, num_workers=2, has_wide=True)
    assert (first.num_wide, second.num_rows) == (400, [])


@pytest.mark.parametrize("num_clients", [2, 3, 8])
def test_a_crowd_is_served_by_all_workers_and_seldom_by_all_cores(num_clients: int) -> None:
    ran = workers_of_a_crowd(num_clients, is_waited_for=True, num_workers=2, has_wide=True)
    assert sum(worker.num_wide for worker in ran) < 20
    assert min(sum(worker.num_rows) for worker in ran) > 0.3 * 400


def test_who_comes_while_a_request_has_all_cores_waits_for_its_end_and_that_is_predicted() -> None:
    """A newcomer is not run beside it; who could not be in time behind it is refused at once."""

    async def play() -> tuple[float, list[int]]:
        loop = cast(VirtualTimeLoop, asyncio.get_running_loop())
        rig = Rig(loop, new_queue(2), num_workers=2, wide_runs=new_wide_runs())
        answered = loop.create_future()
        rig.submit(np.array([[1]]), 60.0, lambda _: None)
        rig.submit(np.array([[2]]), 60.0, lambda _: answered.set_result(loop.time()))
        with pytest.raises(Overloaded):
            rig.submit(np.array([[3]]), 1.5 * wide_service(1), lambda _: None)
        return await answered, [worker.num_wide for worker in rig.workers]

    ended_s, wide = in_virtual_time(play)
    assert ended_s == pytest.approx(2 * wide_service(1))
    assert wide == [2, 0]


def test_a_request_whose_run_on_all_cores_failed_is_run_again_by_a_worker() -> None:
    async def play() -> list[int]:
        loop = cast(VirtualTimeLoop, asyncio.get_running_loop())
        rig = Rig(loop, new_queue(2), num_workers=2, wide_runs=new_wide_runs())
        answered = loop.create_future()
        rig.submit(np.array([[1]]), 60.0, answered.set_result)
        rig.workers[0].lose()
        await answered
        return [worker.num_wide for worker in rig.workers]

    assert in_virtual_time(play) == [1, 0]


def test_a_worker_that_waits_in_vain_goes_on_with_what_is_there() -> None:
    """Three are answered together, and one comes back: it is run after a moment, not when the others come."""

    async def play() -> float:
        loop = cast(VirtualTimeLoop, asyncio.get_running_loop())
        rig = Rig(loop, new_queue())
        rig.submit(np.array([[1]]), 60.0, lambda _: None)
        answered = [loop.create_future() for _ in range(3)]
        for future in answered:
            rig.submit(np.array([[1]]), 60.0, future.set_result)
        await asyncio.gather(*answered)
        before_s = loop.time()
        again = loop.create_future()
        rig.submit(np.array([[1]]), 60.0, again.set_result)
        await again
        return loop.time() - before_s

    assert service(1) < in_virtual_time(play) <= service(1) + 2.1e-3


@pytest.mark.parametrize("does_fail", [False, True])
def test_what_a_worker_says_after_the_end_is_not_heard(does_fail: bool) -> None:
    """Between the end of a dispatcher and that of its workers an answer may come; whoever asked was told already."""
    answers: list[Result] = []
    mishaps: list[dict[str, Any]] = []

    async def play() -> None:
        loop = cast(VirtualTimeLoop, asyncio.get_running_loop())
        loop.set_exception_handler(lambda _, context: mishaps.append(context))
        rig = Rig(loop, new_queue())
        rig.submit(np.array([[1]]), 60.0, answers.append)
        rig.dispatcher.close()
        if does_fail:
            rig.workers[0].fail()
        await asyncio.sleep(1.0)

    in_virtual_time(play)
    assert [type(answer) for answer in answers] == [NotReady]
    assert mishaps == []


def test_a_loop_that_is_slow_to_see_answers_does_not_take_the_model_for_slow() -> None:
    """Otherwise it refuses all that the model could answer, is busy with refusing, and never finds out."""
    latency = LatencyEstimate(TABLE)

    async def play() -> None:
        loop = cast(VirtualTimeLoop, asyncio.get_running_loop())
        queue = BatchQueue(latency=latency, max_batch_rows=32, max_queue_rows=200, num_workers=1)
        rig = Rig(loop, queue, unseen_s=10 * service(1))
        for _ in range(50):
            rig.submit(np.array([[1]]), 60.0, lambda _: None)
            await asyncio.sleep(20 * service(1))

    in_virtual_time(play)
    assert latency.predict_s(1) == pytest.approx(service(1), rel=0.01)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    rows=st.lists(st.integers(1, 3), min_size=12, max_size=12),
    axes=st.sampled_from(((), ("length",))),
    batch_sizes=st.sampled_from(((), (4, 8), (32,))),
)
def test_everybody_gets_their_own_rows_back_whatever_was_padded(
    lengths: list[int], rows: list[int], axes: tuple[str, ...], batch_sizes: tuple[int, ...]
) -> None:
    requests = [
        np.arange(num * length).reshape(num, length) + 1000 * number
        for number, (num, length) in enumerate(zip(rows, lengths, strict=False))
    ]
    answers: dict[int, Array] = {}

    async def play() -> list[int]:
        loop = cast(VirtualTimeLoop, asyncio.get_running_loop())
        rig = Rig(loop, new_queue(max_batch_rows=8, batch_sizes=batch_sizes), axes=axes)

        def answer(number: int, result: Result) -> None:
            assert not isinstance(result, RequestError)
            answers[number] = result["tokens"].copy()

        for number, tokens in enumerate(requests):
            rig.submit(tokens, 100.0, lambda result, number=number: answer(number, result))  # type: ignore[misc]
        done = loop.create_future()
        loop.call_later(100.0, done.set_result, None)
        await done
        return rig.workers[0].num_rows

    ran = in_virtual_time(play)
    assert {number: found.tolist() for number, found in answers.items()} == {
        number: tokens.tolist() for number, tokens in enumerate(requests)
    }
    assert not batch_sizes or set(ran) <= set(batch_sizes)
    if axes:
        assert len(ran) <= 1 + -(-sum(rows[: len(lengths)]) // 5), "shapes that can be padded share batches"
