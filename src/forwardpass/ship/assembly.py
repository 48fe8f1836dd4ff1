"""From evidence to bundle: which variants travel, with what golden answers and statistics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from forwardpass.bundle import Bundle, PaddingRecord
from forwardpass.convert import Conversion
from forwardpass.core.checklist import CheckLine
from forwardpass.core.reference import TensorStatistics, summarise_samples, summarise_tensors
from forwardpass.core.samples import Samples
from forwardpass.core.tensors import Array
from forwardpass.core.variants import BatchInvariance, Precision
from forwardpass.optimize import Candidate, Optimization, Verdict
from forwardpass.predict import FLOAT_TOLERANCE, PackingList, VariantToPack, pack_bundle
from forwardpass.profile import PaddingFinding
from forwardpass.runtimes import RuntimeOptions, open_runtime
from forwardpass.ship.auditing import travels
from forwardpass.ship.page import render_report

if TYPE_CHECKING:
    from forwardpass.ship.pipeline import ShipRequest

__all__ = ["assemble_bundle", "golden_inputs", "golden_tolerance"]

NUM_GOLDEN_SINGLES = 3
NUM_GOLDEN_ROWS = 4
"""A few single rows, of different shapes where there are any, and one batch: milliseconds to re-run at every load."""

SHARE_OF_OWN_ERROR = 0.5
LEAST_QUANTISED_TOLERANCE = 1e-3


def assemble_bundle(
    destination: Path,
    request: ShipRequest,
    conversion: Conversion,
    optimization: Optimization,
    lines: Sequence[CheckLine],
) -> Bundle:
    """Pack the chosen variant, first and default, and the float model."""
    baseline = conversion.variant.name
    kept = [candidate for candidate in optimization.candidates if travels(candidate, baseline)]
    kept.sort(key=lambda candidate: candidate.verdict is not Verdict.CHOSEN)
    packing = PackingList(
        name=request.name,
        variants=[_to_pack(candidate) for candidate in kept],
        golden_inputs=golden_inputs(request.splits.validation, is_batchable=conversion.signature.is_batchable),
        machine=optimization.machine,
        slo=request.settings.slo,
        reference_inputs=summarise_samples(request.splits.calibration),
        reference_outputs=_summarise_outputs(kept[0], request.splits.calibration),
        processor=request.processor,
        processor_folder=request.processor_folder,
        documents={
            "evidence/conversion.json": _document(conversion),
            "evidence/optimization.json": _document(optimization),
            "evidence/checklist.json": _document(tuple(lines)),
            "report.html": render_report(request.name, conversion, optimization, lines).encode(),
        },
    )
    return pack_bundle(destination, packing)


def golden_inputs(samples: Samples, *, is_batchable: bool) -> list[dict[str, Array]]:
    """Choose the calls that a bundle re-runs when it is loaded."""
    singles = [
        {name: array[:1] for name, array in group.inputs.items()}
        for group in samples.head(NUM_GOLDEN_SINGLES).groups[:NUM_GOLDEN_SINGLES]
    ]
    if not is_batchable:
        return singles
    largest = max(samples.groups, key=len)
    return [*singles, {name: array[:NUM_GOLDEN_ROWS] for name, array in largest.inputs.items()}]


def golden_tolerance(candidate: Candidate) -> float:
    """Return how far an answer may be from the golden one on another machine.

    A quantised variant rounds: on another processor a few values fall to the other side, which moves an answer by a
    part of the variant's own quantisation error. Half of that error still tells it from saturated arithmetic, which
    multiplies the error several times.
    """
    if candidate.variant.precision in (Precision.FP32, Precision.FP16_STORAGE):
        return FLOAT_TOLERANCE
    error = candidate.relative_error.value if candidate.relative_error is not None else 0.0
    return max(SHARE_OF_OWN_ERROR * error, LEAST_QUANTISED_TOLERANCE)


def _to_pack(candidate: Candidate) -> VariantToPack:
    assert candidate.profile is not None, "a candidate that was not measured is never chosen or kept"
    return VariantToPack(
        variant=candidate.variant,
        invariance=candidate.profile.invariance.verdict,
        exact_batch_sizes=candidate.profile.invariance.exact_batch_sizes,
        exact_thread_counts=candidate.profile.invariance.exact_thread_counts,
        padding=_padding(candidate.profile.invariance.padding),
        latency=candidate.profile.latency_tables(),
        golden_tolerance=golden_tolerance(candidate),
    )


def _padding(finding: PaddingFinding | None) -> PaddingRecord | None:
    if finding is None or finding.verdict is BatchInvariance.INTERFERENCE:
        return None
    return PaddingRecord(axis=finding.axis, invariance=finding.verdict)


def _summarise_outputs(candidate: Candidate, samples: Samples) -> tuple[TensorStatistics, ...]:
    """Summarise what the chosen variant answers for the calibration samples."""
    variant = candidate.variant
    runtime = open_runtime(variant.format, variant.location, options=RuntimeOptions())
    collected: dict[str, list[Array]] = {}
    for group in samples.batches(1):
        for name, array in runtime.run(group.inputs).items():
            if array.dtype.kind != "O":  # strings have no such statistics
                collected.setdefault(name, []).append(array)
    return tuple(summarise_tensors(name, arrays) for name, arrays in collected.items())


def _document(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
