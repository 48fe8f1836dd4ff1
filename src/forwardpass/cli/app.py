"""The root command, and the one place where an error becomes an exit code.

0 done, 1 the answer is no (a target missed, a conversion that does not answer the same), 2 the command or its inputs
are wrong, 3 this machine lacks something, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click
import msgspec

from forwardpass.core.version import VERSION
from forwardpass.errors import (
    BundleError,
    EnvironmentProblem,
    ForwardpassError,
    RequestError,
    ServerUnreachable,
    UsageError,
)

__all__ = ["main"]

COMMANDS = {
    "profile": "Measure a model: latency, throughput, memory, cold start.",
    "convert": "Convert a model to ONNX and prove that it still answers the same.",
    "optimize": "Make leaner variants, measure each, and choose one with reasons.",
    "ship": "Run the whole checklist: from a trained model to a bundle that can be served.",
    "serve": "Serve bundles, or a bare model file, over HTTP and gRPC.",
    "load": "Load a running server: latency, capacity within a target, goodput under overload.",
    "keys": "Make, list and remove API keys for a server.",
    "inspect": "Check a bundle and show what is in it.",
}
"""In the order of the work. Each lives in a module of its own that is imported only when it runs."""

EXIT_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (UsageError, 2),
    (BundleError, 2),
    (ServerUnreachable, 3),
    (RequestError, 2),
    (EnvironmentProblem, 3),
    (ForwardpassError, 1),
)
INTERRUPTED = 130
RESUMED = ("optimize", "ship")
"""Commands that go on where an interruption ended them."""


class _Commands(click.Group):
    """Imports a command's module when the command is used, so that `--help` does not pay for all of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"forwardpass.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Add to a command that is not there the one that was meant."""
        if args[0] not in COMMANDS:
            from difflib import get_close_matches

            meant = get_close_matches(args[0], COMMANDS, n=1)
            ctx.fail(f"No such command '{args[0]}'." + (f" Did you mean '{meant[0]}'?" if meant else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands, in the order of the work"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(VERSION, message="forwardpass %(version)s")
def root() -> None:
    """Take a trained model to production inference, and keep the evidence.

    Start with 'forwardpass ship MODEL --data SAMPLES --out BUNDLE', then 'forwardpass serve BUNDLE'.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    code = _run(words)
    if code == INTERRUPTED:
        # CPython remembers an interrupt that hit inside exec(), where dataclasses are made, and would end the process
        # by the signal although it was handled here.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _run(words: Sequence[str]) -> int:
    try:
        code = root.main(args=list(words), prog_name="forwardpass", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort) as error:
        is_kept = any(word in RESUMED for word in words[:1])
        kept = " What was finished is kept; run the same command again to go on." if is_kept else ""
        after = "" if isinstance(error, click.Abort) else "\n"  # click has ended the line of the terminal's ^C
        click.echo(f"{after}Interrupted.{kept}", err=True)
        return INTERRUPTED
    except ForwardpassError as error:
        _report(error.slug, str(error), as_json="--json" in words)
        return next(code for kind, code in EXIT_CODES if isinstance(error, kind))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads the rest
        return 0
    except OSError as error:
        _report("environment", f"This machine says: {error.strerror or error}.", as_json="--json" in words)
        return 3
    return code if isinstance(code, int) else 0


def _report(slug: str, sentence: str, *, as_json: bool) -> None:
    if as_json:
        document = {"schema_version": 1, "error": {"slug": slug, "message": sentence}}
        click.echo(msgspec.json.encode(document).decode())
    else:
        click.echo(f"Error: {sentence}", err=True)
