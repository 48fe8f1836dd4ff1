"""The command that was typed, put together again from what click understood of it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import click
from click.core import ParameterSource

__all__ = ["command_line"]


def command_line() -> str:
    """Return the running command with the arguments and options that were given, as a shell takes it.

    `--json` is left out: it changes what is printed and not what is made.
    """
    context = click.get_current_context()
    words = [word for parameter in context.command.params for word in _words(parameter, context)]
    return shlex.join(["forwardpass", context.info_name or "", *words])


def _words(parameter: click.Parameter, context: click.Context) -> Iterator[str]:
    name = parameter.name or ""
    if context.get_parameter_source(name) is not ParameterSource.COMMANDLINE or name == "as_json":
        return
    value = context.params[name]
    for one in value if parameter.multiple or parameter.nargs != 1 else (value,):
        if isinstance(parameter, click.Argument):
            yield str(one)
        elif isinstance(parameter, click.Option) and parameter.is_flag:
            yield parameter.opts[0] if one else parameter.secondary_opts[0]
        else:
            yield from (parameter.opts[0], f"{one:g}" if isinstance(one, float) else str(one))
