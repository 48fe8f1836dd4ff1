"""Writes the reference pages that are made from the code: the command line, the errors, the Python API.

`python docs/generate.py` writes them; with `--check` it only tells whether they are up to date (exit 1 if not).
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

import forwardpass
from forwardpass import errors
from forwardpass.cli.app import COMMANDS, root

REFERENCE = Path(__file__).parent / "reference"
NOTE = "<!-- Made by docs/generate.py from the code; edit that instead. -->\n"


def command_line_page() -> str:
    """Render every command's help."""
    parts = [NOTE, "# Command line\n", "```text\n" + _help(root, "forwardpass") + "\n```\n"]
    context = click.Context(root, info_name="forwardpass")
    for name in COMMANDS:
        command = root.get_command(context, name)
        assert command is not None, "every listed command has a module"
        parts.append(f"## forwardpass {name}\n\n```text\n{_help(command, f'forwardpass {name}')}\n```\n")
        for inner, part in command.commands.items() if isinstance(command, click.Group) else ():
            whole = f"forwardpass {name} {inner}"
            parts.append(f"### {whole}\n\n```text\n{_help(part, whole)}\n```\n")
    codes = "0 done · 1 the answer is no · 2 wrong command or input · 3 this machine lacks something · 130 interrupted"
    parts.append(f"## Exit codes\n\n{codes}\n")
    return "\n".join(parts)


def errors_page() -> str:
    """Render the tree of errors with their slugs."""
    rows = [f"| `{kind.slug}` | `{kind.__name__}` | {inspect.getdoc(kind)} |" for kind in _error_classes()]
    table = "\n".join(["| slug | class | what is wrong |", "|---|---|---|", *rows])
    introduction = (
        "The slug is stable: `--json` prints it as `error.slug`. In Python, every class is in `forwardpass.errors` and "
        "inherits `ForwardpassError`."
    )
    return f"{NOTE}\n# Errors\n\n{introduction}\n\n{table}\n"


def python_page() -> str:
    """Render signatures and docstrings of the public names."""
    parts = [NOTE, "# Python API\n"]
    for name in sorted(set(forwardpass.__all__) - {"__version__"}, key=str.lower):
        thing = getattr(forwardpass, name)
        parts.append(f"## forwardpass.{name}\n")
        if inspect.isclass(thing):
            parts.append(f"{_doc(thing)}\n")
            parts.extend(_methods(thing))
        else:
            parts.append(f"```python\n{_signature(name, thing)}\n```\n\n{_doc(thing)}\n")
    return "\n".join(parts)


PAGES = {"cli.md": command_line_page, "errors.md": errors_page, "python.md": python_page}


def main(arguments: list[str]) -> int:
    """Write or check all pages."""
    stale = []
    for name, render in PAGES.items():
        path, text = REFERENCE / name, render()
        if path.is_file() and path.read_text() == text:
            continue
        stale.append(name)
        if "--check" not in arguments:
            path.write_text(text)
    if stale and "--check" in arguments:
        print(f"Stale: {', '.join(stale)} in docs/reference. Run 'make docs'.", file=sys.stderr)
        return 1
    return 0


def _help(command: click.Command, name: str) -> str:
    context = click.Context(command, info_name=name, max_content_width=100, terminal_width=100)
    return command.get_help(context).rstrip()


def _error_classes() -> Iterator[type[errors.ForwardpassError]]:
    for name in errors.__all__:
        kind = getattr(errors, name)
        if inspect.isclass(kind) and issubclass(kind, errors.ForwardpassError):
            yield kind


def _methods(kind: type) -> Iterator[str]:
    for name, member in vars(kind).items():
        if name.startswith("_") or not (callable(member) or isinstance(member, classmethod | property)):
            continue
        plain = member.fget if isinstance(member, property) else inspect.unwrap(getattr(kind, name))
        if plain is None or not inspect.getdoc(plain):
            continue
        shown = name if isinstance(member, property) else _signature(name, getattr(kind, name))
        yield f"### {kind.__name__}.{name}\n\n```python\n{shown}\n```\n\n{_doc(plain)}\n"


def _signature(name: str, function: object) -> str:
    assert callable(function), "only functions and methods have signatures"
    text = f"{name}{inspect.signature(function)}"
    text = re.sub(r"(: |-> )'([^']+)'", r"\1\2", text)
    text = re.sub(r"<function \w+ at 0x[0-9a-f]+>", "…", text)
    if len(text) <= 100:
        return text
    inside, _, after = text.partition("(")[2].rpartition(")")
    arguments = ",\n    ".join(_split_arguments(inside))
    return f"{name}(\n    {arguments},\n){after}"


def _split_arguments(text: str) -> Iterator[str]:
    """Split at commas that are not inside brackets."""
    depth, start = 0, 0
    for at, character in enumerate(text):
        depth += {"[": 1, "(": 1, "]": -1, ")": -1}.get(character, 0)
        if character == "," and depth == 0:
            yield text[start:at].strip()
            start = at + 1
    yield text[start:].strip()


def _doc(thing: object) -> str:
    """Return the docstring with doctests fenced and sections in bold."""
    text = inspect.getdoc(thing) or ""
    text = re.sub(r"^(Raises|Returns|Yields):$", r"**\1**\n", text, flags=re.MULTILINE)
    text = re.sub(r"^    (\w+): ", r"- `\1`: ", text, flags=re.MULTILINE)
    return re.sub(r"((?:^>>> .*\n?(?:(?!>>>|\n).+\n?)*)+)", r"```python\n\1\n```", text, flags=re.MULTILINE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
