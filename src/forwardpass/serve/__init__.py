"""Keeps the latency target of a bundle behind HTTP: same answer, in time or told at once, nothing lost.

The worker is a module of this package, too, and must not pay for the front: names are loaded when they are used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forwardpass.serve.config import ServeConfig, name_of, read_config
    from forwardpass.serve.models import ModelConfig, Traffic
    from forwardpass.serve.planning import PipelineConfig, StepConfig
    from forwardpass.serve.repository import models_in
    from forwardpass.serve.server import Server, ending_signals, serve
    from forwardpass.serve.settings import Front, LowLoadThreads, ModelSettings, SameAnswer, ServeSettings

_HOMES = {
    "Front": "settings",
    "LowLoadThreads": "settings",
    "ModelConfig": "models",
    "ModelSettings": "settings",
    "PipelineConfig": "planning",
    "SameAnswer": "settings",
    "ServeConfig": "config",
    "ServeSettings": "settings",
    "Server": "server",
    "StepConfig": "planning",
    "Traffic": "models",
    "ending_signals": "server",
    "models_in": "repository",
    "name_of": "config",
    "read_config": "config",
    "serve": "server",
}

__all__ = [
    "Front",
    "LowLoadThreads",
    "ModelConfig",
    "ModelSettings",
    "PipelineConfig",
    "SameAnswer",
    "ServeConfig",
    "ServeSettings",
    "Server",
    "StepConfig",
    "Traffic",
    "ending_signals",
    "models_in",
    "name_of",
    "read_config",
    "serve",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'forwardpass.serve' has no attribute '{name}'")
    return getattr(import_module(f"forwardpass.serve.{_HOMES[name]}"), name)
