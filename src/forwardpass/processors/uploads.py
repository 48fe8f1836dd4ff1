"""What processors of files share: which files a request holds, and their settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from forwardpass.core.uploads import Upload
from forwardpass.errors import InvalidOption, MalformedRequest, SourceNotFound

__all__ = ["read_settings", "uploads_of"]

_T = TypeVar("_T")


def uploads_of(request: Mapping[str, object], field: str, *, max_files: int) -> list[Upload]:
    """Return the files of the only field; in Python bare bytes will do.

    >>> uploads_of({"image": b"GIF89a"}, "image", max_files=2)
    [Upload(media_type='application/octet-stream')]

    Raises:
        MalformedRequest: there is none, there are too many, or there is another field.
    """
    unknown = sorted(set(request) - {field})
    if unknown:
        raise MalformedRequest(reason=f"unknown field '{unknown[0][:64]}'; this model takes '{field}'")
    value = request.get(field)
    given = value if isinstance(value, list) else [value]
    uploads = [Upload(content=item) if isinstance(item, bytes) else item for item in given]
    files = [item for item in uploads if isinstance(item, Upload)]
    if not files or len(files) != len(uploads):
        raise MalformedRequest(
            reason=f"'{field}' must be a file; send it as multipart/form-data or as the whole body with its media type"
        )
    if len(files) > max_files:
        raise MalformedRequest(reason=f"'{field}' has {len(files)} files, more than the limit of {max_files}")
    return files


def read_settings(path: Path, kind: type[_T]) -> _T:
    """Read the settings of a processor.

    Raises:
        SourceNotFound: the file is not there.
        InvalidOption: a setting is missing, unknown, or of the wrong type.
    """
    if not path.is_file():
        raise SourceNotFound(path=str(path), expected=f"a {path.name} with the settings of the processor")
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidOption(option=path.name, value=str(path), expected=f"settings that fit ({error})") from error
