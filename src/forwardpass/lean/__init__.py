"""Leaner networks in PyTorch: channels pruned, weights zeroed, students taught. The search measures them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from forwardpass.lean.values import LeanSettings, PruneSettings, SparsitySettings, StudentSettings, TrainSettings

if TYPE_CHECKING:
    from forwardpass.lean.distilling import distil_module, open_student
    from forwardpass.lean.pruning import prune_module
    from forwardpass.lean.rounding import round_copy
    from forwardpass.lean.sparsity import zero_weights
    from forwardpass.lean.training import train_module

_HOMES = {
    "distil_module": "forwardpass.lean.distilling",
    "open_student": "forwardpass.lean.distilling",
    "prune_module": "forwardpass.lean.pruning",
    "round_copy": "forwardpass.lean.rounding",
    "train_module": "forwardpass.lean.training",
    "zero_weights": "forwardpass.lean.sparsity",
}

__all__ = [
    "LeanSettings",
    "PruneSettings",
    "SparsitySettings",
    "StudentSettings",
    "TrainSettings",
    "distil_module",
    "open_student",
    "prune_module",
    "round_copy",
    "train_module",
    "zero_weights",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'forwardpass.lean' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
