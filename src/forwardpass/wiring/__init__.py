"""The public functions: the one place that picks real adapters and puts the layers together."""

from forwardpass.wiring.building import ProfileReport, convert_model, optimize_model, profile_model, ship_model
from forwardpass.wiring.loading import find_capacity, load_test
from forwardpass.wiring.serving import Inspection, inspect_bundle, load, run_server, serve_model

__all__ = [
    "Inspection",
    "ProfileReport",
    "convert_model",
    "find_capacity",
    "inspect_bundle",
    "load",
    "load_test",
    "optimize_model",
    "profile_model",
    "run_server",
    "serve_model",
    "ship_model",
]
