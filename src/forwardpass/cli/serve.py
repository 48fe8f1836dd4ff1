"""`forwardpass serve`: an endpoint in front of bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

__all__ = ["command"]


@click.command("serve")
@click.argument("bundles", nargs=-1, metavar="BUNDLE…")
@click.option(
    "--config", type=click.Path(path_type=Path), metavar="FILE", help="TOML file; options given here overrule it."
)
@click.option(
    "--repository", type=click.Path(path_type=Path), metavar="FOLDER", help="Serve every model in FOLDER/name/version."
)
@click.option("--host", default=None, help="Address to listen on; default: 127.0.0.1.")
@click.option("--port", type=click.IntRange(0, 65535), default=None, help="Default: 8000; 0 takes a free one.")
@click.option("--grpc-port", type=click.IntRange(0, 65535), default=None, help="Serve gRPC, too; 0 takes a free port.")
@click.option("--slo", default=None, metavar="p99=100ms", help="Latency target; default: the bundle's own.")
@click.option("--variant", default=None, metavar="NAME", help="Which variant to serve; default: the chosen one.")
@click.option(
    "--threads", type=click.IntRange(min=1), default=None, help="Threads per call; default: from the profile."
)
@click.option(
    "--low-load-threads",
    type=click.Choice(["auto", "off"]),
    default=None,
    help="Where there are several workers, let a request that is alone run on all cores (auto) or in one worker (off); "
    "default: auto.",
)
@click.option(
    "--workers", type=click.IntRange(min=1), default=None, help="Processes per model; default: from the profile."
)
@click.option(
    "--max-batch", type=click.IntRange(min=1), default=None, help="Rows in one batch; default: from the profile."
)
@click.option(
    "--same-answer",
    type=click.Choice(["affordable", "bitwise", "rounding"]),
    default=None,
    help="Answers equal to the last bit whatever shares the batch, or up to rounding; default: bitwise if affordable.",
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
@click.option("--otlp", default=None, metavar="URL", help="Send traces to this OpenTelemetry collector (OTLP/HTTP).")
@click.option(
    "--trace-sample",
    type=click.FloatRange(min=0.0, max=1.0),
    default=None,
    metavar="SHARE",
    help="Share of the requests to trace; default: all.",
)
@click.option(
    "--front",
    type=click.Choice(["auto", "python"]),
    default=None,
    help="What reads requests: native code where it can, or Python alone; default: auto.",
)
@click.option(
    "--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True, help="How to log."
)
@click.option("--log-requests", is_flag=True, help="Log a line for every request: route, status and time, no content.")
def command(
    bundles: tuple[str, ...],
    *,
    config: Path | None,
    repository: Path | None,
    slo: str | None,
    same_answer: str | None,
    low_load_threads: str | None,
    front: str | None,
    log_format: str,
    log_requests: bool,
    **options: Any,
) -> None:
    """Serve each BUNDLE over HTTP and gRPC (Open Inference Protocol v2) until SIGTERM or Ctrl-C.

    BUNDLE is a folder made by 'forwardpass ship', a folder of versions (1, 2, 3 …) of a model, or a bare model file for
    a quick start.

    \b
    Examples:
      forwardpass serve digits-bundle --slo p99=100ms
      forwardpass serve --repository models --watch 1
      curl localhost:8000/v2/models/digits
    """
    from forwardpass.core.slo import Slo
    from forwardpass.serve import Front, LowLoadThreads, SameAnswer
    from forwardpass.serve.logs import configure_logs
    from forwardpass.wiring import run_server

    configure_logs(as_json=log_format == "json")
    given = {_SETTINGS.get(name, name): value for name, value in options.items() if value is not None}
    if slo is not None:
        given["slo"] = Slo.parse(slo)
    if same_answer is not None:
        given["same_answer"] = SameAnswer(same_answer)
    if low_load_threads is not None:
        given["low_load_threads"] = LowLoadThreads(low_load_threads)
    if front is not None:
        given["front"] = Front(front)
    if log_requests:
        given["log_requests"] = True
    run_server(bundles, config=config, repository=repository, **given)


_SETTINGS = {
    "threads": "num_threads",
    "workers": "num_workers",
    "max_batch": "max_batch_rows",
    "max_queue": "max_queue_rows",
    "timeout": "timeout_s",
    "grace": "grace_s",
    "watch": "watch_s",
    "tls_cert": "certificate",
    "tls_key": "private_key",
    "tls_client_ca": "client_ca",
}
"""What an option is called among the settings."""
