"""The life of a server: start, serve, drain, stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
from collections.abc import Callable

from forwardpass.bundle import Bundle, BundledVariant
from forwardpass.core.latency import LatencyTable
from forwardpass.core.variants import BatchInvariance
from forwardpass.errors import AddressInUse, ModelNotServed
from forwardpass.processors import open_processor
from forwardpass.serve.app import Application
from forwardpass.serve.batching import BatchQueue, LatencyEstimate, QueueStatistics
from forwardpass.serve.channel import Failed
from forwardpass.serve.connections import Connections
from forwardpass.serve.dispatching import Dispatcher
from forwardpass.serve.http import HttpConnection
from forwardpass.serve.process import WorkerProcess, WorkerState
from forwardpass.serve.settings import ServeSettings

__all__ = ["Server", "serve"]

UNMEASURED_MAX_BATCH_ROWS = 32
"""For a variant whose batches were never measured; what it learns while serving corrects the predictions."""

SETTLE_S = 0.1
"""Requests that are on their way when the server is told to stop are still read, and told that they are the last."""

log = logging.getLogger("forwardpass.serve")


class Server:
    """One bundle behind one port, with one worker process."""

    def __init__(self, bundle: Bundle, settings: ServeSettings) -> None:
        self._bundle = bundle
        self._settings = settings
        self._variant = bundle.variant(settings.variant)
        self.num_threads = settings.num_threads or _num_threads(self._variant)
        table = self._variant.latency_for(self.num_threads)
        self._latency = LatencyEstimate(table)
        self._queue = BatchQueue(
            max_batch_rows=settings.max_batch_rows or max_batch_rows(self._variant, table),
            max_queue_rows=settings.max_queue_rows,
            latency=self._latency,
        )
        self._is_draining = False

    async def start(self) -> None:
        """Start the worker, wait until it has checked its golden answers, and listen.

        Raises:
            ModelNotServed: the variant cannot be loaded, or answers differently on this machine.
            UnknownProcessor: no installed package provides the bundle's processor.
            AddressInUse: the port is taken.
        """
        record = self._bundle.manifest.processor
        processor = open_processor(record.name, self._bundle.locate(record.folder)) if record else None
        self._dispatcher = Dispatcher(
            model=self._bundle.name,
            signature=self._bundle.signature,
            queue=self._queue,
            latency=self._latency,
            hang_s=self._settings.hang_s,
        )
        self._worker = WorkerProcess(
            str(self._bundle.path), self._variant.name, self.num_threads, self._dispatcher.listener
        )
        self._dispatcher.attach(self._worker)
        try:
            await self._start_worker()
        except BaseException:
            await self._worker.stop()
            raise
        self._application = Application(
            name=self._bundle.name,
            signature=self._bundle.signature,
            variant=self._variant,
            processor=processor,
            dispatcher=self._dispatcher,
            timeout_s=self._settings.timeout_s,
            is_ready=lambda: self.is_ready,
        )
        self._connections = Connections(max_connections=self._settings.max_connections)
        try:
            await self._listen()
        except BaseException:
            self._application.close()
            await self._worker.stop()
            raise

    async def stop(self) -> None:
        """Refuse new connections, answer what was accepted within the grace time, and end the worker."""
        self._is_draining = True
        self._connections.announce_closing()
        try:
            async with asyncio.timeout(self._settings.grace_s):
                await asyncio.sleep(SETTLE_S)
                self._listener.close()
                await self._connections.close()
        except TimeoutError:
            log.warning("the grace time is over; what is still open is answered with an error")
            self._listener.close()
            self._dispatcher.close()
            self._connections.close_all()
        self._application.close()
        await self._worker.stop()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that the server listens on."""
        host, port = self._listener.sockets[0].getsockname()[:2]
        return host, port

    @property
    def is_ready(self) -> bool:
        """Whether requests are answered: the worker is there, and the server is not stopping."""
        return not self._is_draining and self._worker.state in (WorkerState.IDLE, WorkerState.BUSY)

    @property
    def worker_pid(self) -> int:
        """The process that runs the model now."""
        return self._worker.pid

    def learn_table(self, table: LatencyTable) -> None:
        """Take over latencies that were measured after the start, and batch as they advise."""
        self._latency.learn_table(table)
        if self._settings.max_batch_rows is None:
            self._queue.max_batch_rows = max_batch_rows(self._variant, table)

    def statistics(self) -> QueueStatistics:
        """Return what the queue holds and has done."""
        return self._queue.statistics()

    def describe(self) -> str:
        """Return one line on how the bundle is served."""
        host, port = self.address
        return (
            f"{self._bundle.name} ({self._variant.name}, threads: {self.num_threads}, rows in a batch: up to "
            f"{self._queue.max_batch_rows}) on http://{host}:{port}"
        )

    async def _start_worker(self) -> None:
        answer = await self._worker.start()
        if isinstance(answer, Failed):
            raise ModelNotServed(model=self._bundle.name, reason=answer.message)

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        host, port = self._settings.host, self._settings.port
        try:
            self._listener = await loop.create_server(
                lambda: HttpConnection(self._application.handle, self._settings, self._connections),
                host,
                port,
                backlog=1024,
            )
        except OSError as error:
            reason = os.strerror(error.errno).lower() if error.errno else str(error)
            raise AddressInUse(address=f"{host}:{port}", reason=reason) from error


def serve(bundle: Bundle, settings: ServeSettings, *, on_ready: Callable[[Server], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then answer what was accepted and return. A second signal ends at once.

    Raises:
        ModelNotServed: the variant cannot be loaded, or answers differently on this machine.
        AddressInUse: the port is taken.
    """
    try:
        import uvloop
    except ImportError:  # there is none for some systems
        asyncio.run(_serve(bundle, settings, on_ready))
    else:
        uvloop.run(_serve(bundle, settings, on_ready))


async def _serve(bundle: Bundle, settings: ServeSettings, on_ready: Callable[[Server], None] | None) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stopping.is_set():
            log.warning("second signal: ending at once")
            os._exit(1)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    server = Server(bundle, settings)
    starting = asyncio.ensure_future(server.start())
    waiting = asyncio.ensure_future(stopping.wait())
    await asyncio.wait((starting, waiting), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
        log.info("stopped while loading")
        return
    starting.result()
    gc.freeze()  # what is there by now stays: the collector need not look at it again and again
    log.info("ready: %s", server.describe())
    if on_ready is not None:
        on_ready(server)
    await waiting
    log.info("draining")
    await server.stop()
    log.info("stopped")


def max_batch_rows(variant: BundledVariant, table: LatencyTable | None) -> int:
    """Return how many rows of different requests may share a batch.

    One, for a variant whose rows change each other's answers or that cannot be batched; otherwise the batch size with
    the best throughput, which is one where batching gains nothing.
    """
    if variant.invariance in (BatchInvariance.INTERFERENCE, BatchInvariance.NOT_BATCHABLE):
        return 1
    return table.best_batch_size if table is not None else UNMEASURED_MAX_BATCH_ROWS


def _num_threads(variant: BundledVariant) -> int:
    table = variant.latency_for()
    return table.num_threads if table is not None else len(os.sched_getaffinity(0))
