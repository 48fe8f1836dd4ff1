"""onnxruntime's quantiser logs advice to the root logger and prints; its errors still come through."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

__all__ = ["quiet_quantizer"]


@contextlib.contextmanager
def quiet_quantizer() -> Iterator[None]:
    """Keep its advice to itself: forwardpass has done what it advises, or says why not."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
