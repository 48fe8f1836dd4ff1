"""From the body of a request to the fields that a processor takes: JSON, a form with files, or one bare file.

`multipart` does the parsing: it needs no I/O, counts parts and header bytes as it goes, and refuses what browsers would
not write. File names are dropped here, so nothing behind this can trust or log them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from forwardpass.core.protocols import ShowsExample, TakesFiles
from forwardpass.core.uploads import UNKNOWN_MEDIA_TYPE, Upload
from forwardpass.errors import MalformedRequest, UnsupportedMediaType

if TYPE_CHECKING:
    from multipart import MultipartSegment

__all__ = ["FORM", "FileFields", "check_is_json", "decode_fields", "example_of", "file_fields"]

MAX_PARTS = 512
"""Twice as many as the texts or files that a processor takes at most."""
MAX_PART_HEADERS = 8
MAX_PART_HEADER_BYTES = 1024
FORM = "multipart/form-data"
NEVER_JSON = frozenset({"multipart", "image", "audio", "video", "font", "model"})
"""Bodies of other kinds are read as JSON, whatever they are called: curl says that they are forms."""

FileFields = Mapping[str, tuple[str, ...]]


def file_fields(processor: object) -> FileFields:
    """Return which fields of a processor are files, and the media types that each takes."""
    return processor.file_fields if isinstance(processor, TakesFiles) else {}


def example_of(processor: object) -> Mapping[str, object] | None:
    """Return the fields that a processor shows as its example, if it shows any."""
    return processor.example if isinstance(processor, ShowsExample) else None


def decode_fields(body: bytes, content_type: str, files: FileFields) -> dict[str, object]:
    """Return the fields of a request: texts, what JSON holds, and an `Upload` for every file.

    A name that stands at several parts of a form becomes a list.

    Raises:
        MalformedRequest: the body is not what its content type says.
        UnsupportedMediaType: the processor does not take this kind of body or part.
    """
    media_type, parameters = _parse(content_type)
    if media_type == FORM:
        return _decode_form(body, parameters.get("boundary", ""), files)
    fields = [name for name, media_types in files.items() if media_type in media_types]
    if media_type == UNKNOWN_MEDIA_TYPE:
        fields = list(files)
    if len(fields) == 1:
        return {fields[0]: Upload(content=body, media_type=media_type)}
    check_is_json(content_type, files)
    try:
        return _decode_object(body)
    except MalformedRequest as error:
        if not files:
            raise
        hint = "a file is sent as multipart/form-data, or as the whole body with its media type"
        raise MalformedRequest(reason=f"{error.reason}; {hint}") from error


def check_is_json(content_type: str, files: FileFields | None = None) -> None:
    """Refuse a body that says itself that it is not JSON.

    Raises:
        UnsupportedMediaType: it is a form, an image or a sound.
    """
    media_type, _ = _parse(content_type)
    if media_type.partition("/")[0] in NEVER_JSON:
        known = {media_type for media_types in (files or {}).values() for media_type in media_types}
        form = (FORM,) if files is not None else ()
        raise UnsupportedMediaType(media_type=_shown(media_type), expected=("application/json", *form, *sorted(known)))


def _parse(content_type: str) -> tuple[str, dict[str, str]]:
    if not content_type:  # most requests: nothing is imported for them
        return "application/json", {}
    from multipart import parse_options_header

    media_type, parameters = parse_options_header(content_type)
    return media_type, parameters


def _decode_form(body: bytes, boundary: str, files: FileFields) -> dict[str, object]:
    from multipart import MultipartError, MultipartSegment, PushMultipartParser

    fields: dict[str, list[object]] = {}
    pieces: list[bytes] = []
    try:
        parser = PushMultipartParser(
            boundary.encode("latin-1", "replace"),
            content_length=len(body),
            max_header_size=MAX_PART_HEADER_BYTES,
            max_header_count=MAX_PART_HEADERS,
            max_segment_count=MAX_PARTS,
            strict=True,
        )
        segment: MultipartSegment | None = None
        with parser:
            for event in parser.parse(body):
                if isinstance(event, MultipartSegment):
                    segment, pieces = event, []
                elif event is not None:
                    pieces.append(event)
                else:
                    assert segment is not None, "a part ends that has begun"
                    fields.setdefault(_name(segment), []).append(_value(segment, b"".join(pieces), files))
    except MultipartError as error:
        reason = str(error)
        raise MalformedRequest(reason=f"the form cannot be read: {reason[:1].lower()}{reason[1:]}") from error
    return {name: values[0] if len(values) == 1 else values for name, values in fields.items()}


def _name(segment: MultipartSegment) -> str:
    name: str = segment.name or ""
    if not name or len(name) > 64 or not name.isprintable():
        raise MalformedRequest(reason="a part of the form has no name, or one of over 64 or unprintable characters")
    return name


def _value(segment: MultipartSegment, content: bytes, files: FileFields) -> object:
    name, media_type = _name(segment), segment.content_type or ""
    if name in files:
        if (media_type or UNKNOWN_MEDIA_TYPE) not in (UNKNOWN_MEDIA_TYPE, *files[name]):
            raise UnsupportedMediaType(media_type=_shown(media_type), expected=files[name])
        return Upload(content=content, media_type=media_type or UNKNOWN_MEDIA_TYPE)
    if segment.filename is not None:
        known = ", ".join(f"'{field}'" for field in files) or "none"
        raise MalformedRequest(reason=f"'{name}' is not a file of this model; its files: {known}")
    if media_type == "application/json":
        return _decode_json(content)
    if media_type not in ("", "text/plain"):
        raise UnsupportedMediaType(media_type=_shown(media_type), expected=("text/plain", "application/json"))
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise MalformedRequest(reason=f"the text of '{name}' is not UTF-8") from error


def _decode_object(body: bytes) -> dict[str, object]:
    fields = _decode_json(body)
    if not isinstance(fields, dict):
        raise MalformedRequest(reason="the body must be a JSON object")
    return fields


def _decode_json(text: bytes) -> object:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedRequest(reason=str(error)) from error
    except RecursionError as error:
        raise MalformedRequest(reason="it is nested too deeply") from error


def _shown(media_type: str) -> str:
    return media_type[:64] if media_type.isprintable() else "unknown"
