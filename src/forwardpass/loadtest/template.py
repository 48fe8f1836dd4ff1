"""JSON bodies from a template with placeholders, for endpoints that are not of the Open Inference Protocol.

A string of the template that is one placeholder becomes its value, a number or list as the case may be; placeholders
inside a longer string become text. `{{floats:4x16}}` normal numbers · `{{float}}` one · `{{ints:0:100:16}}` whole
numbers from 0 to 99 · `{{int:0:100}}` one · `{{choice:cat|dog}}` · `{{line:questions.txt}}` a line of a file ·
`{{data:pixels}}` a row of an array of the samples.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from forwardpass.core.tensors import Array
from forwardpass.errors import InvalidOption

__all__ = ["MAX_BODIES", "Body", "fill_template"]

MAX_BODIES = 64
"""Bodies that are made before the run and sent in turn."""
_PLACEHOLDER = re.compile(r"\{\{\s*(\w+)(?::(.*?))?\s*\}\}")
_SHAPE = re.compile(r"\d{1,6}(x\d{1,6}){0,7}")
_MAX_ELEMENTS = 1_000_000

Value = Callable[[int, np.random.Generator], Any]
"""What a placeholder becomes in the body of this number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """A body to send, and what it is."""

    content: bytes
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


def fill_template(text: str, *, rows: Sequence[Mapping[str, Array]], folder: Path, seed: int) -> list[Body]:
    """Make the bodies; one if the template has no placeholder. Files are looked for in `folder`.

    >>> [body.content for body in fill_template('{"x": "{{choice:a|a}}"}', rows=[], folder=Path(), seed=0)][:1]
    [b'{"x":"a"}']

    Raises:
        InvalidOption: the template is no JSON, or a placeholder is unknown or lacks something.
    """
    try:
        document = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        expected = f"JSON with placeholders inside strings ({error})"
        raise InvalidOption(option="--template", value=text.strip()[:40], expected=expected) from error
    values = _values_in(document, _Sources(rows=rows, folder=folder))
    generator = np.random.default_rng(seed)
    return [
        Body(content=msgspec.json.encode(_filled(document, values, number, generator)))
        for number in range(MAX_BODIES if values else 1)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sources:
    rows: Sequence[Mapping[str, Array]]
    folder: Path


def _values_in(node: object, sources: _Sources) -> dict[str, Value]:
    """Return what each placeholder below `node` stands for."""
    if isinstance(node, str):
        return {match[0]: _value(match, sources) for match in _PLACEHOLDER.finditer(node)}
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    found: dict[str, Value] = {}
    for child in children:
        found |= _values_in(child, sources)
    return found


def _filled(node: object, values: Mapping[str, Value], number: int, generator: np.random.Generator) -> object:
    if isinstance(node, dict):
        return {name: _filled(child, values, number, generator) for name, child in node.items()}
    if isinstance(node, list):
        return [_filled(child, values, number, generator) for child in node]
    if not isinstance(node, str):
        return node
    if node in values:
        return values[node](number, generator)
    return _PLACEHOLDER.sub(lambda match: str(values[match[0]](number, generator)), node)


def _value(match: re.Match[str], sources: _Sources) -> Value:
    name, argument = match[1], match[2] or ""
    makers: dict[str, Callable[[str, _Sources], Value | None]] = {
        "float": lambda _, __: lambda ___, generator: float(generator.standard_normal()),
        "floats": _floats,
        "int": _ints,
        "ints": _ints,
        "choice": _choice,
        "line": _line,
        "data": _data,
    }
    maker = makers.get(name)
    value = maker(argument, sources) if maker is not None else None
    if value is None:
        expected = (
            "{{float}}, {{floats:64}}, {{int:0:9}}, {{ints:0:9:64}}, {{choice:a|b}}, {{line:FILE}} or {{data:NAME}}"
        )
        raise InvalidOption(option="--template", value=match[0], expected=expected)
    return value


def _floats(argument: str, _: _Sources) -> Value | None:
    shape = _shape(argument)
    return (lambda _, generator: generator.standard_normal(shape).round(4).tolist()) if shape else None


def _ints(argument: str, _: _Sources) -> Value | None:
    low, high, shape_words = (*argument.split(":"), "", "", "")[:3]
    if not (re.fullmatch(r"-?\d{1,18}", low) and re.fullmatch(r"-?\d{1,18}", high) and int(low) < int(high)):
        return None
    shape = _shape(shape_words) if shape_words else ()
    if shape is None:
        return None
    return lambda _, generator: generator.integers(int(low), int(high), size=shape).tolist()


def _choice(argument: str, _: _Sources) -> Value | None:
    words = argument.split("|")
    return (lambda _, generator: words[int(generator.integers(len(words)))]) if argument else None


def _line(argument: str, sources: _Sources) -> Value:
    try:
        text = (sources.folder / argument).read_text()
    except (OSError, UnicodeDecodeError) as error:
        where = f"{{{{line:{argument}}}}}"
        raise InvalidOption(option="--template", value=where, expected="a text file that can be read") from error
    lines = [line for line in text.splitlines() if line.strip()] or [""]
    return lambda number, _: lines[number % len(lines)]


def _data(argument: str, sources: _Sources) -> Value:
    rows = sources.rows
    if not rows or argument not in rows[0]:
        known = f"one of the arrays {', '.join(rows[0])}" if rows else "samples, given with --data"
        raise InvalidOption(option="--template", value=f"{{{{data:{argument}}}}}", expected=known)
    return lambda number, _: rows[number % len(rows)][argument].tolist()


def _shape(words: str) -> tuple[int, ...] | None:
    if not _SHAPE.fullmatch(words):
        return None
    shape = tuple(map(int, words.split("x")))
    return shape if 0 < math.prod(shape) <= _MAX_ELEMENTS else None
