"""The lines of the checklist, read off the evidence."""

from __future__ import annotations

from collections.abc import Iterator

from forwardpass.convert import Conversion
from forwardpass.core.checklist import CheckLine, Verdict
from forwardpass.core.measurement import Measurement
from forwardpass.core.samples import SampleSplits
from forwardpass.core.slo import QualityFloor
from forwardpass.core.variants import BatchInvariance, Format
from forwardpass.optimize import Candidate, Optimization, OptimizeSettings
from forwardpass.profile import InvarianceVerdict, VariantProfile
from forwardpass.profile.gaps import join_sizes
from forwardpass.report.format import format_bytes, format_measurement, format_ratio, format_seconds

__all__ = ["checklist", "quality_lines"]

_WITHIN = "; its interval reaches the limit"
"""Why a score below the limit keeps it: the test split is a draw of samples."""


def checklist(
    splits: SampleSplits, conversion: Conversion, optimization: Optimization, settings: OptimizeSettings
) -> tuple[CheckLine, ...]:
    """Return every line of the checklist, in the order of the work."""
    source = optimization.candidates[0]
    chosen = optimization.find(optimization.chosen)
    return (
        _samples_line(splits),
        *_profile_lines("profile", _source_name(source, conversion), source),
        _parity_line(conversion),
        _choice_line(chosen, optimization),
        *quality_lines(chosen, optimization, settings.floor),
        *_profile_lines("result", chosen.variant.name, chosen),
        *_slo_lines(chosen, settings),
        _same_answer_line(chosen),
    )


def _source_name(source: Candidate, conversion: Conversion) -> str:
    """Say what was measured: an estimator or a model of Keras' is measured as the ONNX file that was made of it."""
    is_given = source.variant.format is Format.TORCH or conversion.is_as_given
    return "source" if is_given else "source as ONNX"


def _samples_line(splits: SampleSplits) -> CheckLine:
    sizes = f"{len(splits.calibration)} + {len(splits.validation)} + {len(splits.test)}"
    labels = "with labels" if splits.test.has_labels else "without labels"
    return CheckLine(
        step="samples",
        what="calibration + validation + test",
        number=sizes,
        limit="no overlap",
        verdict=Verdict.MET,
        note=labels,
    )


def _profile_lines(step: str, name: str, candidate: Candidate) -> Iterator[CheckLine]:
    profile = _profile(candidate)
    best = profile.best_latency
    threads = f"{name}, {best.num_threads} thread{'s' if best.num_threads > 1 else ''}, batch {best.batch_size}"
    yield CheckLine(step=step, what="latency p50", number=format_measurement(best.p50_s), note=threads)
    yield CheckLine(step=step, what="latency p95", number=format_measurement(best.p95_s), note=threads)
    most = profile.best_throughput
    yield CheckLine(
        step=step,
        what="throughput",
        number=f"{most.rows_per_s.value:,.0f} rows/s",
        note=f"{name}, batch {most.batch_size}",
    )
    yield CheckLine(step=step, what="peak memory", number=format_bytes(profile.memory.peak_bytes.value), note=name)
    yield CheckLine(step=step, what="cold start", number=format_measurement(profile.cold_start.total_s), note=name)


def _parity_line(conversion: Conversion) -> CheckLine:
    made_by = "ONNX as given" if conversion.is_as_given else conversion.exporter
    flips = f"{conversion.num_flips} decisions differ" if conversion.num_flips else "no decision differs"
    return CheckLine(
        step="convert",
        what=f"difference from the source over {len(conversion.parity)} shapes",
        number=f"{conversion.worst_difference:.1e}",
        limit=f"{conversion.tolerance:.0e}",
        verdict=Verdict.MET,
        note=f"{made_by}, opset {conversion.opset}; {flips}",
    )


def _choice_line(chosen: Candidate, optimization: Optimization) -> CheckLine:
    gain = chosen.gain
    number = format_ratio(gain.value) if gain is not None else ""
    low_high = f" ({gain.interval.low:.2f} to {gain.interval.high:.2f})" if gain is not None else ""
    return CheckLine(
        step="optimise",
        what=f"{optimization.target.value}, {chosen.variant.name} against the float model",
        number=f"{number}{low_high}",
        note=f"{sum(it.profile is not None for it in optimization.candidates)} variants measured",
    )


def quality_lines(chosen: Candidate, optimization: Optimization, floor: QualityFloor) -> Iterator[CheckLine]:
    """Quote both splits, each beside the limit that the score of the source on it sets.

    On validation the value decides, as it did in the search. The test split is another draw of samples: it misses a
    drop only if the whole interval of the difference from the source does, sample by sample, and an absolute floor if
    the interval of the score does.
    """
    assert chosen.validation is not None, "what is chosen was scored"
    yield CheckLine(
        step="optimise",
        what=f"{optimization.metric} on validation",
        number=_score(chosen.validation),
        limit=f"{optimization.floor_score:.4g}",
        verdict=_verdict(_is_kept(chosen.validation.value, optimization.floor_score, optimization)),
        note="the split that the search may see",
    )
    yield _test_line(chosen, optimization, floor)


def _test_line(chosen: Candidate, optimization: Optimization, floor: QualityFloor) -> CheckLine:
    source, difference = optimization.candidates[0].test, chosen.test_difference
    assert chosen.test is not None, "what is chosen was scored"
    assert source is not None, "the source was scored first"
    assert difference is not None, "what is chosen was scored beside the source"
    limit = floor.limit(source.value, higher_is_better=optimization.higher_is_better)
    sign = 1 if optimization.higher_is_better else -1
    is_met = sign * _kindest(difference, optimization) >= -floor.drop(source.value) and (
        floor.absolute is None or _is_kept(_kindest(chosen.test, optimization), floor.absolute, optimization)
    )
    is_by_interval = is_met and not _is_kept(chosen.test.value, limit, optimization)
    low, high = difference.interval.low, difference.interval.high
    note = f"{difference.value:+.4f} against the source ({low:+.4f} to {high:+.4f})"
    return CheckLine(
        step="optimise",
        what=f"{optimization.metric} on test",
        number=_score(chosen.test),
        limit=f"{limit:.4g}",
        verdict=_verdict(is_met),
        note=f"{note}{_WITHIN}" if is_by_interval else note,
    )


def _is_kept(score: float, limit: float, optimization: Optimization) -> bool:
    return score >= limit if optimization.higher_is_better else score <= limit


def _kindest(score: Measurement, optimization: Optimization) -> float:
    return score.interval.high if optimization.higher_is_better else score.interval.low


def _verdict(is_met: bool) -> Verdict:
    return Verdict.MET if is_met else Verdict.MISSED


def _slo_lines(chosen: Candidate, settings: OptimizeSettings) -> Iterator[CheckLine]:
    if settings.slo is None:
        return
    best = _profile(chosen).best_latency
    measured = {50.0: best.p50_s, 95.0: best.p95_s, 99.0: best.p99_s}
    percent = min((known for known in measured if known >= settings.slo.percent), default=99.0)
    value = measured[percent]
    is_met = value.value <= settings.slo.limit_s
    yield CheckLine(
        step="target",
        what=f"latency p{percent:g}, one request at a time",
        number=format_measurement(value),
        limit=format_seconds(settings.slo.limit_s),
        verdict=_verdict(is_met),
        note="" if is_met else "try --target latency, a larger --max-drop, or more threads",
    )


def _same_answer_line(chosen: Candidate) -> CheckLine:
    audit = _profile(chosen).invariance
    notes = {
        BatchInvariance.BITWISE: "to the last bit, whatever else is in the batch",
        BatchInvariance.FIXED_SHAPES: f"to the last bit in batches of {join_sizes(audit.exact_batch_sizes)} rows",
        BatchInvariance.TOLERANCE: "up to rounding, whatever else is in the batch",
        BatchInvariance.INTERFERENCE: "rows would change each other's answers: served one at a time",
        BatchInvariance.NOT_BATCHABLE: "served one request at a time",
    }
    return CheckLine(
        step="same answer",
        what=f"alone against in a batch, {audit.num_comparisons:,} comparisons",
        number=f"{audit.max_difference:.1e}" if audit.max_difference else "0",
        limit="served so that it holds",
        verdict=Verdict.MET,
        note=f"{notes[audit.verdict]}{_elsewhere(audit)}",
    )


def _elsewhere(audit: InvarianceVerdict) -> str:
    """Say whether other numbers of threads and other processes answer otherwise."""
    threads = ", ".join(map(str, audit.differing_thread_counts))
    notes = [f"; other bytes with {threads} threads than with {audit.thread_counts[0]}"] if threads else []
    if audit.is_same_in_fresh_processes is False:
        notes.append("; a new process answers with other bytes")
    return "".join(notes)


def _profile(candidate: Candidate) -> VariantProfile:
    assert candidate.profile is not None, "the source and what is chosen were profiled"
    return candidate.profile


def _score(score: Measurement) -> str:
    return f"{score.value:.4f} ({score.interval.low:.4f} to {score.interval.high:.4f})"
