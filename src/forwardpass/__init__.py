"""Takes a trained model to production inference, and keeps the evidence.

Everything that the command line does is a function here. Names are loaded when they are first used, so that
`import forwardpass` costs nothing and serving never meets a tool that only building needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from forwardpass.core.version import VERSION as __version__

if TYPE_CHECKING:
    from forwardpass.predict import Predictor
    from forwardpass.wiring import load

_HOMES = {
    "Predictor": "forwardpass.predict",
    "load": "forwardpass.wiring",
}

__all__ = ["Predictor", "__version__", "load"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'forwardpass' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
