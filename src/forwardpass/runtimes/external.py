"""Which files an ONNX file keeps its weights in, read off its bytes: what serves it does without the `onnx` package.

Protocol buffers are fields one after another, each with its number and its length, so that what is not looked for is
stepped over. The numbers are those of ONNX's `onnx.proto3`.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from forwardpass.errors import InvalidModel

__all__ = ["external_files"]

_INSIDE = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
"""Which fields of a message lead to tensors, and what is in them."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LOCATION = b"location"


@dataclass(frozen=True, slots=True)
class _Field:
    number: int
    start: int
    end: int


def external_files(path: Path) -> tuple[Path, ...]:
    """Return the files beside an ONNX file that its tensors name, sorted.

    What is no ONNX file has none, and one that is missing is the runtime's to tell.

    Raises:
        InvalidModel: a tensor names a file outside of the model's folder.
    """
    if not path.is_file() or not path.stat().st_size:
        return ()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            names = set(_locations(content, "model", 0, len(content)))
        except (ValueError, IndexError, RecursionError):
            return ()
    files = (_checked(path, name) for name in sorted(names))
    return tuple(file for file in files if file.is_file())


def _checked(path: Path, name: str) -> Path:
    pure, folder = PurePosixPath(name), path.parent.resolve()
    is_inside = not pure.is_absolute() and ".." not in pure.parts and "\\" not in name and "\0" not in name
    # As ONNX Runtime allows it: in a Hugging Face cache, the model and its weights are links to files side by side.
    homes = (folder, path.resolve().parent)
    if not is_inside or not any((folder / name).resolve().is_relative_to(home) for home in homes):
        raise InvalidModel(path=str(path), reason=f"its weights are in '{name[:100]}', outside of its folder")
    return path.parent / name


def _locations(content: mmap.mmap, kind: str, start: int, end: int) -> Iterator[str]:
    inside = _INSIDE[kind]
    for field in _fields(content, start, end):
        found = inside.get(field.number)
        if found == "entry":
            yield from _location(content, field)
        elif found is not None:
            yield from _locations(content, found, field.start, field.end)


def _location(content: mmap.mmap, entry: _Field) -> Iterator[str]:
    pair = {field.number: content[field.start : field.end] for field in _fields(content, entry.start, entry.end)}
    if pair.get(1) == _LOCATION and pair.get(2):
        yield pair[2].decode()


def _fields(content: mmap.mmap, start: int, end: int) -> Iterator[_Field]:
    """Yield the fields that have a length; numbers are stepped over."""
    at = start
    while at < end:
        tag, at = _varint(content, at)
        wire = tag & 7
        if wire == _VARINT:
            _, at = _varint(content, at)
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
        elif wire == _BYTES:
            size, at = _varint(content, at)
            if at + size > end:
                raise ValueError("a field is longer than what it is in")
            yield _Field(tag >> 3, at, at + size)
            at += size
        else:
            raise ValueError("no field begins like this")


def _varint(content: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number does not end")
