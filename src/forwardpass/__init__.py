"""Takes a trained model to production inference, and keeps the evidence.

Everything that the command line does is a function here. Names are loaded when they are first used, so that
`import forwardpass` costs nothing and serving never meets a tool that only building needs.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

from forwardpass.core.version import VERSION as __version__

# Newer builds of ONNX Runtime send usage to their maker unless this is set before they are loaded. Whoever wants that
# sets it to 0; worker processes inherit it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from forwardpass.client import AsyncClient, Client
    from forwardpass.core.slo import QualityFloor, Slo
    from forwardpass.lean import LeanSettings, PruneSettings, SparsitySettings, StudentSettings, TrainSettings
    from forwardpass.loadtest import Arrivals, LoadSettings, Scenario, TargetSettings
    from forwardpass.optimize import OptimizeSettings
    from forwardpass.predict import Predictor
    from forwardpass.profile import ProfileSettings
    from forwardpass.serve import ServeSettings
    from forwardpass.wiring import (
        convert_model,
        find_capacity,
        inspect_bundle,
        load,
        load_test,
        optimize_model,
        profile_model,
        serve_model,
        ship_model,
    )

_HOMES = {
    "Arrivals": "forwardpass.loadtest",
    "AsyncClient": "forwardpass.client",
    "Client": "forwardpass.client",
    "LeanSettings": "forwardpass.lean",
    "LoadSettings": "forwardpass.loadtest",
    "OptimizeSettings": "forwardpass.optimize",
    "Predictor": "forwardpass.predict",
    "ProfileSettings": "forwardpass.profile",
    "PruneSettings": "forwardpass.lean",
    "QualityFloor": "forwardpass.core.slo",
    "Scenario": "forwardpass.loadtest",
    "ServeSettings": "forwardpass.serve",
    "Slo": "forwardpass.core.slo",
    "SparsitySettings": "forwardpass.lean",
    "StudentSettings": "forwardpass.lean",
    "TargetSettings": "forwardpass.loadtest",
    "TrainSettings": "forwardpass.lean",
    "convert_model": "forwardpass.wiring",
    "find_capacity": "forwardpass.wiring",
    "inspect_bundle": "forwardpass.wiring",
    "load": "forwardpass.wiring",
    "load_test": "forwardpass.wiring",
    "optimize_model": "forwardpass.wiring",
    "profile_model": "forwardpass.wiring",
    "serve_model": "forwardpass.wiring",
    "ship_model": "forwardpass.wiring",
}

__all__ = [
    "Arrivals",
    "AsyncClient",
    "Client",
    "LeanSettings",
    "LoadSettings",
    "OptimizeSettings",
    "Predictor",
    "ProfileSettings",
    "PruneSettings",
    "QualityFloor",
    "Scenario",
    "ServeSettings",
    "Slo",
    "SparsitySettings",
    "StudentSettings",
    "TargetSettings",
    "TrainSettings",
    "__version__",
    "convert_model",
    "find_capacity",
    "inspect_bundle",
    "load",
    "load_test",
    "optimize_model",
    "profile_model",
    "serve_model",
    "ship_model",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'forwardpass' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
