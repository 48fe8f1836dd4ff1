"""Measuring: latency, throughput, memory and cold start, always in fresh processes.

Names are loaded when they are first used: the child processes import this package too, and their start is measured.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forwardpass.profile.audits import AnswerDigest, InvarianceAudit, InvarianceVerdict, PaddingFinding
    from forwardpass.profile.invariance import audit_invariance
    from forwardpass.profile.machine import describe_machine
    from forwardpass.profile.measuring import audit_variants, profile_variants
    from forwardpass.profile.profiles import (
        Cell,
        ColdStart,
        Memory,
        SkippedCell,
        VariantProfile,
        speedup,
    )
    from forwardpass.profile.settings import ProfileSettings
    from forwardpass.profile.starts import StartAdvice, StartStudy, StartTrial

_HOMES = {
    "AnswerDigest": "audits",
    "Cell": "profiles",
    "ColdStart": "profiles",
    "InvarianceAudit": "audits",
    "InvarianceVerdict": "audits",
    "Memory": "profiles",
    "PaddingFinding": "audits",
    "ProfileSettings": "settings",
    "SkippedCell": "profiles",
    "StartAdvice": "starts",
    "StartStudy": "starts",
    "StartTrial": "starts",
    "VariantProfile": "profiles",
    "audit_invariance": "invariance",
    "audit_variants": "measuring",
    "describe_machine": "machine",
    "profile_variants": "measuring",
    "speedup": "profiles",
}

__all__ = [
    "AnswerDigest",
    "Cell",
    "ColdStart",
    "InvarianceAudit",
    "InvarianceVerdict",
    "Memory",
    "PaddingFinding",
    "ProfileSettings",
    "SkippedCell",
    "StartAdvice",
    "StartStudy",
    "StartTrial",
    "VariantProfile",
    "audit_invariance",
    "audit_variants",
    "describe_machine",
    "profile_variants",
    "speedup",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'forwardpass.profile' has no attribute '{name}'")
    return getattr(import_module(f"forwardpass.profile.{_HOMES[name]}"), name)
