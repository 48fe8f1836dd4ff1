"""The life of a server: start, serve, drain, stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import logging
import math
import os
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from forwardpass.core.batching import QueueStatistics
from forwardpass.core.latency import LatencyTable
from forwardpass.errors import AddressInUse, InvalidOption, MissingExtra
from forwardpass.serve.app import Application
from forwardpass.serve.auth import Gate, KeyRing, OpenGate
from forwardpass.serve.config import ServeConfig, describe_config
from forwardpass.serve.connections import Connections
from forwardpass.serve.http import HttpConnection
from forwardpass.serve.native import NativeFront, is_available
from forwardpass.serve.prctl import forbid_dumps
from forwardpass.serve.repository import Repository
from forwardpass.serve.settings import Front, ServeSettings
from forwardpass.serve.tracing import open_tracer

if TYPE_CHECKING:
    from forwardpass.serve.grpc_front import GrpcFront

__all__ = ["Server", "ending_signals", "serve"]

SAME_SIGNAL_S = 0.5
"""Supervisors and wrappers tell a process and its group, so one wish to stop may arrive twice."""

SETTLE_S = 0.1
"""Requests that are on their way when the server is told to stop are still read, and told that they are the last."""

log = logging.getLogger("forwardpass.serve")


class Server:
    """Models behind one port: those that are named, and those in the subfolders of the repository."""

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._settings = settings = config.settings
        self._is_draining = False
        self._watching: asyncio.Task[None] | None = None
        self._grpc: GrpcFront | None = None
        self._native: NativeFront | None = None
        self._gate = _gate(settings)
        self._tls = _tls(settings)
        self.repository = Repository(
            config.models,
            pipelines=config.pipelines,
            root=config.repository,
            defaults=settings.model,
            grace_s=settings.grace_s,
            on_change=self._on_change,
        )
        self._tracer = open_tracer(settings.otlp, sample=settings.trace_sample) if settings.otlp is not None else None
        self._application = Application(
            self.repository,
            self._gate,
            max_body_bytes=settings.max_body_bytes,
            is_draining=lambda: self._is_draining,
            tracer=self._tracer,
        )

    async def start(self) -> None:
        """Reserve the ports, load the models, wait until each has checked its golden answers, and listen.

        Raises:
            BundleError: a bundle cannot be trusted.
            ModelNotServed: a variant cannot be loaded, or answers differently on this machine.
            UnknownProcessor: no installed package provides a bundle's processor.
            InvalidPipelines: the steps of pipelines do not fit together.
            AddressInUse: a port is taken.
            MissingExtra: gRPC is asked for, and its library is not installed.
        """
        self._connections = Connections(max_connections=self._settings.max_connections)
        async with contextlib.AsyncExitStack() as undoing:
            undoing.callback(self._application.close)
            undoing.push_async_callback(self.repository.stop)
            self._listener = await self._bind()
            undoing.callback(self._listener.close)
            if self._settings.grpc_port is not None:
                self._grpc = self._bind_grpc()
                undoing.push_async_callback(self._grpc.stop, 0.0)
            for line in describe_config(self._config):  # not sooner: a mistake in it is told alone
                log.info("configuration of %s", line)
            await self.repository.start()
            if not self.repository.models:
                log.warning(
                    "there is no model in '%s' yet; the server is ready when there is one", self._config.repository
                )
            await self._listen()
            if self._grpc is not None:
                await self._grpc.start()
            undoing.pop_all()
        if self._settings.watch_s is not None:
            self._watching = asyncio.ensure_future(self.repository.watch(self._settings.watch_s))

    async def stop(self) -> None:
        """Refuse new connections, answer what was accepted within the grace time, and end the workers."""
        self._is_draining = True
        if self._watching is not None:
            self._watching.cancel()
        self._connections.announce_closing()
        if self._native is not None:
            self._native.announce_closing()
        try:
            async with asyncio.timeout(self._settings.grace_s):
                await asyncio.sleep(SETTLE_S)
                self._stop_listening()
                await asyncio.gather(self._connections.close(), self._stop_grpc(self._settings.grace_s))
        except TimeoutError:
            log.warning("the grace time is over; what is still open is answered with an error")
            self._stop_listening()
        await self.repository.stop()
        await self._stop_grpc(0.0)
        self._application.end_streams()
        await asyncio.sleep(0)  # the last event is written; now comes the end of the body
        self._connections.close_all()
        if self._native is not None:
            self._native.close()
        self._application.close()
        if self._tracer is not None:
            await asyncio.to_thread(self._tracer.close)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that the server listens on."""
        host, port = self._listener.sockets[0].getsockname()[:2]
        return host, port

    @property
    def grpc_port(self) -> int | None:
        """The port of gRPC, if it is served."""
        return self._grpc.port if self._grpc is not None else None

    @property
    def url(self) -> str:
        """Where clients find it."""
        host, port = self.address
        return f"{'https' if self._tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"

    @property
    def is_ready(self) -> bool:
        """Whether requests are answered: every model is there, and the server is not stopping."""
        return self._application.is_ready

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """The processes that run the models now."""
        models = self.repository.models.values()
        return tuple(pid for model in models for version in model.versions.values() for pid in version.worker_pids)

    def num_threads(self, model: str) -> int:
        """Threads per call of a model."""
        return self.repository.models[model].default.sizing.num_threads

    def learn_table(self, model: str, table: LatencyTable) -> None:
        """Take over latencies of a model that were measured after the start, and batch as they advise."""
        version = self.repository.models[model].default
        version.learn_table(table)
        log.info("profiled in the background: %s", version.describe())

    def statistics(self, model: str | None = None) -> QueueStatistics:
        """Return what the queue of a model holds and has done; of the only one, without a name."""
        models = self.repository.models
        return models[model or next(iter(models))].default.statistics()

    def _bind_grpc(self) -> GrpcFront:
        try:
            from forwardpass.serve.grpc_front import GrpcFront
        except ImportError as error:
            raise MissingExtra(package="grpcio", extra="grpc", purpose="to serve gRPC") from error
        front = GrpcFront(
            self.repository, self._gate, self._settings, is_ready=lambda: self.is_ready, tracer=self._tracer
        )
        front.bind()
        return front

    async def _stop_grpc(self, grace_s: float) -> None:
        if self._grpc is not None:
            await self._grpc.stop(grace_s)

    def _on_change(self) -> None:
        self._application.rebuild()
        if self._native is not None:
            self._native.rebuild()

    def _stop_listening(self) -> None:
        self._listener.close()
        if self._native is not None:
            self._native.stop_listening()

    async def _bind(self) -> asyncio.Server:
        """Take the port before models are loaded, which may last: a port in use is told at once."""
        application = self._application
        with self._naming_address():
            return await asyncio.get_running_loop().create_server(
                lambda: HttpConnection(application.admit, application.handle, self._settings, self._connections),
                self._settings.host,
                self._settings.port,
                backlog=1024,
                ssl=self._tls,
                start_serving=False,
            )

    async def _listen(self) -> None:
        with self._naming_address():
            if not self._wants_native():
                await self._listener.start_serving()
                return
            native = NativeFront(self._application, self.repository, self._settings, self._connections)
            native.start(self._listener.sockets)
            self._native = native

    def _wants_native(self) -> bool:
        """Tell whether native code may stand in front: it knows no TLS, traces, or log of every request."""
        settings = self._settings
        is_plain = self._tls is None and self._tracer is None and not settings.log_requests
        return settings.front is not Front.PYTHON and is_plain and is_available()

    @contextlib.contextmanager
    def _naming_address(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            is_name = isinstance(error, socket.gaierror)  # its numbers are not those of the system
            reason = (error.strerror if is_name or not error.errno else os.strerror(error.errno)) or str(error)
            raise AddressInUse(address=f"{self._settings.host}:{self._settings.port}", reason=reason.lower()) from error


def serve(
    config: ServeConfig,
    *,
    on_ready: Callable[[Server], None] | None = None,
    before_exit: Callable[[], None] | None = None,
) -> None:
    """Serve until SIGTERM, SIGINT, SIGHUP or SIGQUIT, then answer what was accepted and return.

    A second signal ends the process at once, and its workers with it. `before_exit` cleans up: it is run however
    serving ends, while signals do not end the process.

    Raises:
        BundleError: a bundle cannot be trusted.
        ModelNotServed: a variant cannot be loaded, or answers differently on this machine.
        AddressInUse: the port is taken.
    """
    try:
        import uvloop
    except ImportError:  # there is none for some systems
        asyncio.run(_serve(config, on_ready, before_exit))
    else:
        uvloop.run(_serve(config, on_ready, before_exit))


async def _serve(
    config: ServeConfig, on_ready: Callable[[Server], None] | None, before_exit: Callable[[], None] | None
) -> None:
    forbid_dumps()
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    told_s = math.inf

    def on_signal() -> None:
        nonlocal told_s
        if loop.time() - told_s > SAME_SIGNAL_S:
            log.warning("second signal: ending at once")
            try:
                if before_exit is not None:
                    before_exit()
            finally:
                os._exit(1)
        told_s = min(told_s, loop.time())
        stopping.set()

    for number in ending_signals():
        loop.add_signal_handler(number, on_signal)
    try:
        await _serve_until(stopping, config, on_ready)
    finally:
        if before_exit is not None:
            before_exit()


def ending_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that ask a server to end; the loss of its terminal does not where `nohup` ignores it.

    A shell lets what it starts in the background ignore SIGINT and SIGQUIT, which then are meant for the server alone.
    """
    asking = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
    return asking if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (*asking, signal.SIGHUP)


async def _serve_until(stopping: asyncio.Event, config: ServeConfig, on_ready: Callable[[Server], None] | None) -> None:
    server = Server(config)
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
    grpc = f", gRPC on port {server.grpc_port}" if server.grpc_port is not None else ""
    log.info("a page to try it: %s/docs", server.url)
    log.info("ready on %s%s", server.url, grpc)
    if on_ready is not None:
        on_ready(server)
    await waiting
    log.info(
        "draining: no new connections, what was accepted is answered within %g s; a second signal ends it at once",
        config.settings.grace_s,
    )
    await server.stop()
    log.info("stopped")


def _gate(settings: ServeSettings) -> Gate:
    return KeyRing(settings.keys) if settings.keys is not None else OpenGate(is_loopback=_is_loopback(settings.host))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _tls(settings: ServeSettings) -> ssl.SSLContext | None:
    if settings.certificate is None:
        if settings.private_key is not None:
            raise InvalidOption(option="--tls-cert", value="", expected="the certificate that --tls-key belongs to")
        if settings.client_ca is not None:
            expected = "one of the server, too, if clients need a certificate (--tls-client-ca)"
            raise InvalidOption(option="--tls-cert", value="", expected=expected)
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.certificate, settings.private_key)
    except OSError as error:
        reason = "the key is missing, see --tls-key" if settings.private_key is None else _reason(error)
        expected = f"PEM files of a certificate and its key ({reason})"
        raise InvalidOption(option="--tls-cert", value=str(settings.certificate), expected=expected) from error
    if settings.client_ca is not None:
        try:
            context.load_verify_locations(settings.client_ca)
        except OSError as error:
            expected = f"a PEM file of certificates ({_reason(error)})"
            raise InvalidOption(option="--tls-client-ca", value=str(settings.client_ca), expected=expected) from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _reason(error: OSError) -> str:
    """Put OpenSSL's error into words, without the line of the interpreter's source where it was seen."""
    words = str(error.strerror or error).partition(" (_ssl.c")[0].removeprefix("[SSL] ")
    return _OPENSSL_SAYS.get(words) or words.lower()


_OPENSSL_SAYS = {
    "PEM lib": "they cannot be read as such",
    "[X509: KEY_VALUES_MISMATCH] key values mismatch": "the key is not that of the certificate",
    "[X509: NO_CERTIFICATE_OR_CRL_FOUND] no certificate or crl found": "there is no certificate in it",
}
