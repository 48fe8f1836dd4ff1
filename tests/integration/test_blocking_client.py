"""The client that blocks is made from the one for asyncio, and neither can be changed alone."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

from forwardpass import AsyncClient, Client
from scripts import make_blocking_client as making

METHODS = [name for name, _ in inspect.getmembers(AsyncClient, inspect.isfunction) if not name.startswith("_")]


def test_it_is_up_to_date() -> None:
    assert making.blocking(making.SOURCE.read_text(), making.MADE.read_text()) == making.MADE.read_text()


def test_what_is_made_waits_for_nothing_and_what_is_changed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, made = tmp_path / "asynchronous.py", tmp_path / "blocking.py"
    source.write_text(making.SOURCE.read_text().replace("def unload(", "def put_away("))
    made.write_text(making.MADE.read_text())
    monkeypatch.setattr(making, "SOURCE", source)
    monkeypatch.setattr(making, "MADE", made)
    monkeypatch.setattr("sys.argv", ["make", "--check"])
    assert making.main() == 1
    assert capsys.readouterr().err == "Stale: blocking.py. Run 'make docs'.\n"
    monkeypatch.setattr("sys.argv", ["make"])
    assert making.main() == 0
    assert made.read_text() == making.MADE.read_text()
    assert "def put_away(" in made.read_text()
    tree = ast.parse(made.read_text())
    assert not any(isinstance(node, ast.AsyncFunctionDef | ast.Await) for node in ast.walk(tree))
    assert "asyncio" not in made.read_text().replace("asynchronous.py", "")


@pytest.mark.parametrize("name", METHODS)
def test_both_clients_take_the_same_and_say_the_same(name: str) -> None:
    ours, theirs = getattr(Client, name), getattr(AsyncClient, name)
    assert inspect.signature(ours) == inspect.signature(theirs)
    assert ours.__doc__ == theirs.__doc__
