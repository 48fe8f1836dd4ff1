"""`forwardpass serve`: an endpoint in front of bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

__all__ = ["command"]


@click.command("serve")
@click.argument("bundles", nargs=-1, metavar="BUNDLE…")
@click.option(
    "--repository", type=click.Path(path_type=Path), metavar="FOLDER", help="Serve every model in FOLDER/name/version."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option("--slo", default=None, metavar="p99=100ms", help="Latency target; default: the bundle's own.")
@click.option("--variant", default=None, metavar="NAME", help="Which variant to serve; default: the chosen one.")
@click.option(
    "--threads", type=click.IntRange(min=1), default=None, help="Threads per call; default: from the profile."
)
@click.option(
    "--workers", type=click.IntRange(min=1), default=None, help="Processes per model; default: from the profile."
)
@click.option(
    "--max-batch", type=click.IntRange(min=1), default=None, help="Rows in one batch; default: from the profile."
)
@click.option(
    "--max-queue", type=click.IntRange(min=1), default=None, help="Rows that may wait before requests are refused."
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.0, min_open=True),
    default=None,
    help="Seconds a request may take; default: the target's limit.",
)
@click.option(
    "--grace", type=click.FloatRange(min=0.0), default=None, help="Seconds to answer what is open after SIGTERM."
)
@click.option(
    "--watch",
    type=click.FloatRange(min=0.05),
    default=None,
    metavar="SECONDS",
    help="Look for new versions every so often, and load them.",
)
@click.option(
    "--keys", type=click.Path(path_type=Path), metavar="FILE", help="API keys, made with 'forwardpass keys add'."
)
@click.option("--tls-cert", type=click.Path(path_type=Path), metavar="PEM", help="Certificate; then HTTPS is spoken.")
@click.option("--tls-key", type=click.Path(path_type=Path), metavar="PEM", help="Private key of the certificate.")
@click.option(
    "--tls-client-ca", type=click.Path(path_type=Path), metavar="PEM", help="Clients need a certificate of this CA."
)
def command(
    bundles: tuple[str, ...],
    *,
    repository: Path | None,
    host: str,
    port: int,
    slo: str | None,
    variant: str | None,
    threads: int | None,
    workers: int | None,
    max_batch: int | None,
    max_queue: int | None,
    timeout: float | None,
    grace: float | None,
    watch: float | None,
    keys: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_client_ca: Path | None,
) -> None:
    """Serve each BUNDLE over HTTP (Open Inference Protocol v2) until SIGTERM or Ctrl-C.

    BUNDLE is a folder made by 'forwardpass ship', a folder of versions (1, 2, 3 …) of a model, or a bare ONNX file for
    a quick start.

    \b
    Examples:
      forwardpass serve digits-bundle --slo p99=100ms
      forwardpass serve --repository models --watch 1
      curl localhost:8000/v2/models/digits
    """
    import logging

    from forwardpass.core.slo import Slo
    from forwardpass.serve import ModelSettings, ServeSettings
    from forwardpass.wiring import serve_model

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    model: dict[str, Any] = {
        "variant": variant,
        "num_threads": threads,
        "num_workers": workers,
        "max_batch_rows": max_batch,
        "max_queue_rows": max_queue,
        "timeout_s": timeout,
        "slo": Slo.parse(slo) if slo is not None else None,
    }
    server: dict[str, Any] = {
        "host": host,
        "port": port,
        "grace_s": grace,
        "watch_s": watch,
        "keys": keys,
        "certificate": tls_cert,
        "private_key": tls_key,
        "client_ca": tls_client_ca,
        "model": ModelSettings(**{name: value for name, value in model.items() if value is not None}),
    }
    settings = ServeSettings(**{name: value for name, value in server.items() if value is not None})
    serve_model(*bundles, settings=settings, repository=repository)
