"""`forwardpass keys`: who may use a server."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from forwardpass.cli.rendering import echo_table
from forwardpass.errors import InvalidOption

__all__ = ["command"]

_LIFETIME = re.compile(r"(?P<number>[1-9]\d{0,4})(?P<unit>[hd])", re.ASCII)


@click.group("keys")
def command() -> None:
    """Make, list and remove API keys for 'forwardpass serve --keys FILE'.

    Only the hash of a key is stored. A running server takes over changes of the file within a second.

    \b
    Examples:
      forwardpass keys add keys.json --name shop-frontend --expires 90d
      forwardpass keys add keys.json --name operator --scope admin
      forwardpass serve shop-bundle --keys keys.json
      curl localhost:8000/v2/models/shop -H "Authorization: Bearer $KEY"
    """


@command.command("add", short_help="Print a new key and add its hash to FILE.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="Who or what the key is for.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(["infer", "read", "admin"]),
    default=("infer", "read"),
    show_default=True,
    help="What it allows; may be given several times. 'admin' allows everything.",
)
@click.option("--expires", default=None, metavar="90d", help="For how many hours (h) or days (d) it is valid.")
@click.option(
    "--rate", type=click.FloatRange(min=0.0, min_open=True), default=None, help="Requests per second that it may send."
)
def add(file: Path, *, name: str, scopes: tuple[str, ...], expires: str | None, rate: float | None) -> None:
    """Print a new key and add its hash to FILE, which is made if need be.

    The key cannot be shown again. Clients send it as 'Authorization: Bearer KEY'. The scopes: 'infer' asks models,
    'read' sees metadata, metrics and /docs, 'admin' also loads, unloads and shifts traffic.

    \b
    Example:
      forwardpass keys add keys.json --name shop-frontend --expires 90d --rate 100
    """
    from forwardpass.serve.auth import Scope, new_key, read_keys, write_keys

    keys = read_keys(file) if file.exists() else ()
    if any(record.name == name for record in keys):
        raise InvalidOption(option="--name", value=name, expected="a name that no key of the file has yet")
    chosen = tuple(Scope(scope) for scope in dict.fromkeys(scopes))
    key, record = new_key(name, chosen, expires_at=_expiry(expires), requests_per_s=rate)
    write_keys(file, (*keys, record))
    click.echo(key)


@command.command("list")
@click.argument("file", type=click.Path(path_type=Path))
def show(file: Path) -> None:
    """List the keys of FILE."""
    from forwardpass.serve.auth import read_keys

    rows = []
    for record in read_keys(file):
        end = f"{record.expires_at:%Y-%m-%d %H:%M} UTC" if record.expires_at else "never"
        if record.expires_at and record.expires_at <= datetime.now(UTC):
            end += " (over)"
        rate = f"{record.requests_per_s:g}/s" if record.requests_per_s else "unlimited"
        rows.append([record.name, ", ".join(record.scopes), end, rate])
    echo_table(rows, header=("name", "scopes", "expires", "rate"))


@command.command("remove")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="The name that the key was made with.")
def remove(file: Path, *, name: str) -> None:
    """Remove a key from FILE."""
    from forwardpass.serve.auth import read_keys, write_keys

    keys = read_keys(file)
    left = tuple(record for record in keys if record.name != name)
    if len(left) == len(keys):
        names = ", ".join(record.name for record in keys) or "none"
        raise InvalidOption(option="--name", value=name, expected=f"one of the file's keys ({names})")
    write_keys(file, left)


def _expiry(text: str | None) -> datetime | None:
    if text is None:
        return None
    match = _LIFETIME.fullmatch(text)
    if match is None:
        raise InvalidOption(option="--expires", value=text, expected="hours or days, such as 12h or 90d")
    number = int(match["number"])
    return datetime.now(UTC) + (timedelta(hours=number) if match["unit"] == "h" else timedelta(days=number))
