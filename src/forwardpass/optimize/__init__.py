"""Leaner variants of a model, each measured on this machine, and one chosen with reasons."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from forwardpass.optimize.prices import Prices
from forwardpass.optimize.values import (
    Candidate,
    FileHash,
    LayerEvidence,
    NotTried,
    Optimization,
    OptimizeSettings,
    Provenance,
    Route,
    SearchStep,
    Target,
    Verdict,
    WeightEvidence,
)

if TYPE_CHECKING:
    from forwardpass.optimize.optimizing import optimize_model

__all__ = [
    "Candidate",
    "FileHash",
    "LayerEvidence",
    "NotTried",
    "Optimization",
    "OptimizeSettings",
    "Prices",
    "Provenance",
    "Route",
    "SearchStep",
    "Target",
    "Verdict",
    "WeightEvidence",
    "optimize_model",
]


def __getattr__(name: str) -> object:
    if name != "optimize_model":
        raise AttributeError(f"module 'forwardpass.optimize' has no attribute '{name}'")
    return import_module("forwardpass.optimize.optimizing").optimize_model
