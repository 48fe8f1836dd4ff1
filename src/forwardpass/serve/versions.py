"""One version of one model, in use: its bundle, its queue and its worker processes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Sequence

from forwardpass.bundle import Bundle
from forwardpass.core.batch_sizes import allowed_rows
from forwardpass.core.batching import NORMAL_PRIORITY, BatchQueue, QueueStatistics
from forwardpass.core.latency import LatencyEstimate, LatencyTable
from forwardpass.core.protocols import Encoder, Processor
from forwardpass.core.tensors import Array
from forwardpass.core.variants import BatchInvariance
from forwardpass.core.wide_runs import WideRuns
from forwardpass.errors import ModelNotServed, NotReady, RequestError
from forwardpass.predict import max_batch_rows
from forwardpass.processors import open_processor
from forwardpass.serve.channel import Failed, Ready
from forwardpass.serve.dispatching import Dispatcher
from forwardpass.serve.lines import Line
from forwardpass.serve.metrics import ModelMetrics
from forwardpass.serve.oip import ResponseWriter
from forwardpass.serve.padding import ShapePadding
from forwardpass.serve.process import WorkerListener, WorkerProcess, WorkerState
from forwardpass.serve.request import Answer, Request
from forwardpass.serve.settings import ModelSettings
from forwardpass.serve.sizing import choose_sizing, paddable_axes
from forwardpass.serve.weights import WeightFolder, may_share

__all__ = ["ModelVersion"]

DEFAULT_TIMEOUT_S = 30.0
LOOK_S = 0.005
"""How often a version that is being drained is looked at."""

log = logging.getLogger("forwardpass.serve")


class ModelVersion:
    """Serves one bundle. It ends by ending its processes, so nothing of it stays in memory."""

    def __init__(self, bundle: Bundle, *, model: str, number: str, settings: ModelSettings) -> None:
        self.bundle = bundle
        self.model = model
        self.number = number
        self.settings = settings
        self.signature = bundle.signature
        self.variant = bundle.variant(settings.variant)
        self.slo = settings.slo or bundle.manifest.slo
        cores = len(os.sched_getaffinity(0))
        self.sizing = choose_sizing(
            self.variant, settings, slo=self.slo, num_cores=cores, variant_bytes=bundle.variant_bytes(self.variant)
        )
        self.timeout_s = settings.timeout_s or (self.slo.limit_s if self.slo else DEFAULT_TIMEOUT_S)
        self._metrics = ModelMetrics(slo_s=self.slo.limit_s if self.slo else None)
        self._line: Line | None = None
        self.writer = ResponseWriter(model, number)
        self.processor: Processor | None = None
        self.num_open = 0
        """Requests that are with the processor, or in earlier steps of a pipeline, and still have to be submitted."""
        self._latency = LatencyEstimate(self.sizing.table)
        self._padding = ShapePadding(self.signature, paddable_axes(self.variant, settings.same_answer))
        self._queue = BatchQueue(
            max_batch_rows=self.sizing.max_batch_rows,
            max_queue_rows=settings.max_queue_rows,
            latency=self._latency,
            num_workers=self.sizing.num_workers,
            batch_sizes=self.sizing.batch_sizes,
        )
        self._workers: list[WorkerProcess] = []
        self._weights: WeightFolder | None = None
        self._is_stopped = False
        self._dispatcher = Dispatcher(
            model=model,
            signature=self.signature,
            queue=self._queue,
            padding=self._padding,
            metrics=self._metrics,
            hang_s=settings.hang_s,
            wide_runs=self._wide_runs(),
        )

    def _wide_runs(self) -> WideRuns | None:
        if self.sizing.wide is None or self.sizing.table is None:
            return None
        return WideRuns(narrow=self.sizing.table, wide=self.sizing.wide.table)

    async def start(self) -> None:
        """Start the workers and wait until each has checked its golden answers.

        Raises:
            ModelNotServed: the variant cannot be loaded, or answers differently on this machine.
            UnknownProcessor: no installed package provides the bundle's processor.
        """
        record = self.bundle.manifest.processor
        if record is not None:
            self.processor = open_processor(record.name, self.bundle.locate(record.folder), self.signature)
        if may_share(
            self.variant, num_workers=self.sizing.num_workers, num_bytes=self.bundle.variant_bytes(self.variant)
        ):
            with contextlib.suppress(OSError):  # then each worker holds its own
                self._weights = WeightFolder()
        self._workers = [
            self._dispatcher.add_worker(lambda listener, number=number: self._make_worker(listener, number))  # type: ignore[misc]
            for number in range(self.sizing.num_workers)
        ]
        try:
            answers = await asyncio.gather(*(worker.start() for worker in self._workers))
            self._check(answers)
        except BaseException:
            await self.stop()
            raise

    def _make_worker(self, listener: WorkerListener, number: int) -> WorkerProcess:
        """Make a worker; the first one holds the variant for lone requests, too."""
        wide = self.sizing.wide if number == 0 else None
        return WorkerProcess(
            self.bundle,
            self.variant.name,
            self.sizing.num_threads,
            listener,
            weights=str(self._weights.path) if self._weights is not None else "",
            wide_threads=wide.num_threads if wide else 0,
            is_wide_exact=wide.is_exact if wide else False,
        )

    def _check(self, answers: Sequence[Ready | Failed]) -> None:
        for answer in answers:
            if isinstance(answer, Failed):
                raise ModelNotServed(model=self.model, reason=answer.message)

    async def drain(self, grace_s: float) -> None:
        """Answer what was accepted within the grace time, then stop."""
        try:
            async with asyncio.timeout(grace_s):
                while self.num_open or not self._dispatcher.is_idle:
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            log.warning("%s: the grace time is over; what is still open is answered with an error", self)
        await self.stop()

    async def stop(self) -> None:
        """Answer what is left with an error and end the processes."""
        self._is_stopped = True
        self._dispatcher.close()
        self._close_line()
        await asyncio.gather(*(worker.stop() for worker in self._workers))
        if self._weights is not None:
            self._weights.remove()
            self._weights = None

    def _close_line(self) -> None:
        """Take over what the line has counted, and let go of it."""
        if self._line is not None:
            self._line.add_counts(self._metrics)
            self._line.close()
            self._line = None

    def submit(
        self,
        tensors: dict[str, Array],
        num_rows: int,
        answer: Answer,
        *,
        timeout_s: float | None = None,
        priority: int = NORMAL_PRIORITY,
    ) -> Callable[[], None]:
        """Queue a request; the returned function gives it up.

        Raises:
            Overloaded: it would come too late.
            RequestQuarantined: the same tensors have ended two workers.
            NotReady: the version has been stopped.
        """
        if self._is_stopped:
            raise NotReady(reason=f"version {self.number} of '{self.model}' has been stopped")
        request = self.request(tensors, num_rows, answer, timeout_s=timeout_s, priority=priority)
        self._dispatcher.submit(request)
        return request.abandon

    def request(
        self,
        tensors: dict[str, Array],
        num_rows: int,
        answer: Answer,
        *,
        timeout_s: float | None = None,
        priority: int = NORMAL_PRIORITY,
    ) -> Request:
        """Return a request that is not queued yet; its time runs from now."""
        timeout = self.timeout_s if timeout_s is None else timeout_s
        return Request(
            num_rows=num_rows,
            shape_key=self.signature.shape_key(tensors),
            row_size=sum(array.size for array in tensors.values()) // num_rows,
            family=self._padding.family(tensors),
            deadline_s=time.monotonic() + timeout,
            priority=priority,
            tensors=tensors,
            answer=answer,
            timeout_s=timeout,
        )

    def add_line(self, line: Line) -> None:
        """Take requests from there, too."""
        self._line = line
        self._dispatcher.add_line(line)

    def on_news(self, deadline_s: float | None) -> None:
        """The line has new requests, the first of which is of use until `deadline_s`."""
        self._dispatcher.on_news(deadline_s)

    @property
    def metrics(self) -> ModelMetrics:
        """What was counted, that of the line included."""
        if self._line is not None:
            self._line.add_counts(self._metrics)
        return self._metrics

    @property
    def encoder(self) -> Encoder | None:
        """What makes tensors of a person's input."""
        return self.processor if isinstance(self.processor, Encoder) else None

    @property
    def decoder(self) -> Processor | None:
        """What puts the outputs into words."""
        return self.processor

    def hold(self) -> None:
        """Announce a request that will be submitted, so that draining waits for it."""
        self.num_open += 1

    def release(self) -> None:
        """Take the announcement back, after submitting or without it."""
        self.num_open -= 1

    def failed(self, error: RequestError) -> None:
        """Count a request that did not come as far as the queue."""
        self._metrics.finished(error, 0.0, 0)

    @property
    def is_ready(self) -> bool:
        """Whether a worker is there to answer."""
        up = (WorkerState.IDLE, WorkerState.BUSY)
        return not self._is_stopped and any(worker.state in up for worker in self._workers)

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """The processes that run the model now."""
        return tuple(worker.pid for worker in self._workers)

    def learn_table(self, table: LatencyTable) -> None:
        """Take over latencies that were measured after the start, and batch as they advise."""
        self._latency.learn_table(table)
        if self.settings.max_batch_rows is None:
            self._queue.max_batch_rows = allowed_rows(max_batch_rows(self.variant, table), self.sizing.batch_sizes)

    def statistics(self) -> QueueStatistics:
        """Return what the queue holds and has done, and the line of the native front."""
        return self._dispatcher.statistics()

    @property
    def max_batch_rows(self) -> int:
        """Rows of different requests that may share a batch now."""
        return self._queue.max_batch_rows

    def warnings(self) -> list[str]:
        """Return what an operator should know, each in a sentence."""
        said = []
        if self.variant.invariance is BatchInvariance.INTERFERENCE:
            said.append(f"{self}: rows of '{self.variant.name}' change each other's answers; requests share no batch.")
        if self.variant.exact_batch_sizes and not self.sizing.batch_sizes:
            sizes = ", ".join(map(str, self.variant.exact_batch_sizes))
            said.append(
                f"{self}: the last bits of an answer may depend on what shares its batch; '--same-answer bitwise' pads "
                f"every batch to {sizes} rows, where they do not, and makes a lone request slower."
            )
        fastest_s = self._latency.predict_s(1)
        if self.slo is not None and fastest_s > self.slo.limit_s:
            said.append(
                f"{self}: one row takes about {fastest_s * 1e3:.3g} ms on this machine; {self.slo} cannot be kept."
            )
        return said

    def __str__(self) -> str:
        return f"{self.model} version {self.number}"

    def describe(self) -> str:
        """Return how it is served, in a few words."""
        sizing = self.sizing
        target = f", {self.slo}" if self.slo else ""
        workers = f"workers: {sizing.num_workers}, " if sizing.num_workers > 1 else ""
        alone = f" (a lone request: {sizing.wide.num_threads})" if sizing.wide else ""
        return (
            f"{self} ({self.variant.name}, {workers}threads: {sizing.num_threads}{alone}, rows in a batch: up to "
            f"{self.max_batch_rows}{target})"
        )
