"""`forwardpass serve`: an endpoint in front of a bundle."""

from __future__ import annotations

import click
import msgspec

__all__ = ["command"]


@click.command("serve")
@click.argument("bundle")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option("--variant", default=None, metavar="NAME", help="Which variant to serve; default: the chosen one.")
@click.option(
    "--threads", type=click.IntRange(min=1), default=None, help="Threads per call; default: from the profile."
)
@click.option(
    "--max-batch", type=click.IntRange(min=1), default=None, help="Rows in one batch; default: from the profile."
)
@click.option(
    "--max-queue", type=click.IntRange(min=1), default=None, help="Rows that may wait before requests are refused."
)
@click.option(
    "--timeout", type=click.FloatRange(min=0.0, min_open=True), default=None, help="Seconds a request may take."
)
@click.option(
    "--grace", type=click.FloatRange(min=0.0), default=None, help="Seconds to answer what is open after SIGTERM."
)
def command(
    bundle: str,
    *,
    host: str,
    port: int,
    variant: str | None,
    threads: int | None,
    max_batch: int | None,
    max_queue: int | None,
    timeout: float | None,
    grace: float | None,
) -> None:
    """Serve BUNDLE over HTTP (Open Inference Protocol v2) until SIGTERM or Ctrl-C.

    BUNDLE is a folder made by 'forwardpass ship', or a bare ONNX file for a quick start.

    \b
    Example:
      forwardpass serve digits-bundle --port 8000
      curl localhost:8000/v2/models/digits
    """
    import logging

    from forwardpass.serve import ServeSettings
    from forwardpass.wiring import serve_model

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    given = {
        "variant": variant,
        "num_threads": threads,
        "max_batch_rows": max_batch,
        "max_queue_rows": max_queue,
        "timeout_s": timeout,
        "grace_s": grace,
    }
    named = {name: value for name, value in given.items() if value is not None}
    serve_model(bundle, settings=msgspec.convert({"host": host, "port": port, **named}, ServeSettings))
