"""A command can be typed again as the report shows it."""

from __future__ import annotations

import shlex

import click
import pytest
from click.testing import CliRunner

from forwardpass.cli.command_line import command_line


@click.command("make")
@click.argument("model")
@click.option("--out", required=True)
@click.option("--dynamic", multiple=True)
@click.option("--floor", type=float)
@click.option("--target", default="latency")
@click.option("--quick", is_flag=True)
@click.option("--json", "as_json", is_flag=True)
def make(**_: object) -> None:
    click.echo(command_line())


@pytest.mark.parametrize(
    "words",
    [
        ["model.onnx", "--out", "a folder"],
        ["m:build", "--out", "o", "--dynamic", "x:2=a", "--dynamic", "x:3=b", "--floor", "0.125", "--quick"],
        ["--target", "cost", "it's", "--out", "$HOME"],
    ],
)
def test_what_is_shown_gives_the_same_again_and_nothing_that_was_not_typed(words: list[str]) -> None:
    shown = CliRunner().invoke(make, words).output.strip()
    assert shown.startswith("forwardpass make ")
    again = shlex.split(shown)[2:]
    assert sorted(again) == sorted(words)
    assert CliRunner().invoke(make, again).output.strip() == shown


def test_printing_as_json_is_not_part_of_what_was_made() -> None:
    assert CliRunner().invoke(make, ["m", "--out", "o", "--json"]).output.strip() == "forwardpass make m --out o"
