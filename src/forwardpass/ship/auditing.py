"""The last look at what travels: the full audit of the same answer, whose verdict the bundle carries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from forwardpass.core.calls import calls_from_samples
from forwardpass.core.protocols import Progress
from forwardpass.core.samples import Samples
from forwardpass.optimize import Candidate, Optimization, OptimizeSettings, Verdict
from forwardpass.profile import InvarianceVerdict, audit_variants

__all__ = ["FullAudits", "audit_travellers", "travels", "with_full_audits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FullAudits:
    """Verdicts by the names of variants."""

    verdicts: Mapping[str, InvarianceVerdict]


def travels(candidate: Candidate, baseline: str) -> bool:
    """Tell whether a candidate goes into the bundle: the chosen one, and the float model to fall back to.

    The others can be made again by their recipes; their evidence travels in any case.
    """
    return candidate.verdict is Verdict.CHOSEN or candidate.variant.name == baseline


def audit_travellers(
    optimization: Optimization, baseline: str, samples: Samples, *, settings: OptimizeSettings, progress: Progress
) -> FullAudits:
    """Audit what goes into the bundle with the time that the search, which looks at every candidate, does not have."""
    variants = [
        candidate.variant
        for candidate in optimization.candidates
        if travels(candidate, baseline) and candidate.profile is not None
    ]
    calls = calls_from_samples(samples, settings.profile.batch_sizes)
    full = settings.profile.with_full_audit(settings.profile.ship_audit_s)
    verdicts = audit_variants(variants, calls, settings=full, progress=progress)
    return FullAudits(verdicts={variant.name: verdict for variant, verdict in zip(variants, verdicts, strict=True)})


def with_full_audits(optimization: Optimization, audits: FullAudits) -> Optimization:
    """Return the same evidence with the verdicts of the full audits."""
    return replace(
        optimization,
        candidates=tuple(_with_verdict(candidate, audits) for candidate in optimization.candidates),
    )


def _with_verdict(candidate: Candidate, audits: FullAudits) -> Candidate:
    verdict = audits.verdicts.get(candidate.variant.name)
    if verdict is None or candidate.profile is None:
        return candidate
    return replace(candidate, profile=replace(candidate.profile, invariance=verdict))
