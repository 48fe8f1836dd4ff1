"""What libraries log while they are imported that is about other machines, or about their own code."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

__all__ = ["quiet_imports"]

_NOISE = {
    # Its kernels for graphics cards, which do not load elsewhere: said once for each of them.
    "torchao": ("Failed to load ", "Skipping import of cpp extensions"),
    # A registration of torchao's own that torch will refuse one day.
    "torch.utils._pytree": ("%s is an Enum subclass",),
}
"""Loggers, and how what they say begins. transformers imports torchao where it is installed: users may not know it."""


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Drop exactly these lines while the block runs; all others, and every error, come through.

    Filters of a logger see what is logged to itself alone: what a user's code logs is not touched.
    """
    with ExitStack() as undo:
        for name, beginnings in _NOISE.items():
            logger = logging.getLogger(name)
            noise = _Noise(beginnings)
            logger.addFilter(noise)
            undo.callback(logger.removeFilter, noise)
        yield


class _Noise(logging.Filter):
    def __init__(self, beginnings: tuple[str, ...]) -> None:
        super().__init__()
        self._beginnings = beginnings

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or not str(record.msg).startswith(self._beginnings)
