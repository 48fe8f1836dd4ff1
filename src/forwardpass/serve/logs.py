"""Log lines for people or for machines; neither holds anything of a request's content."""

from __future__ import annotations

import logging
import sys
import time
from typing import TextIO

import msgspec

__all__ = ["configure_logs", "num_dropped_lines"]


class _TextLines(logging.Formatter):
    """One line for people; control characters are escaped, so that nobody can forge a line."""

    def format(self, record: logging.LogRecord) -> str:
        head, *rest = super().format(record).splitlines() or [""]
        return "\n".join([head, *(f"  {line}" for line in rest)]).translate(_ESCAPED)


class _JsonLines(logging.Formatter):
    """One JSON object on one line."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        line: dict[str, object] = {
            "time": stamp,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


class _Lines(logging.StreamHandler[TextIO]):
    """Writes lines as long as they can be written; a full disk costs lines, and nothing else."""

    num_dropped = 0

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - its name in logging
        """Count a line that could not be written; there is no place where that could be told."""
        if isinstance(sys.exc_info()[1], OSError):
            _Lines.num_dropped += 1
        else:
            super().handleError(record)


def num_dropped_lines() -> int:
    """Return how many lines of the log could not be written."""
    return _Lines.num_dropped


_ESCAPED = {code: f"\\x{code:02x}" for code in (*range(32), 127) if code != ord("\n")}


def configure_logs(*, as_json: bool) -> None:
    """Write the log to standard error."""
    handler = _Lines(sys.stderr)
    handler.setFormatter(_JsonLines() if as_json else _TextLines("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
