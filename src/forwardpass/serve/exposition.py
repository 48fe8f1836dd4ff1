"""What was counted, as Prometheus and the statistics extension of the protocol want it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from forwardpass.core.version import VERSION
from forwardpass.serve.exchange import Exchange, Response
from forwardpass.serve.logs import num_dropped_lines
from forwardpass.serve.metrics import Histogram, ModelMetrics
from forwardpass.serve.pipelines import Pipeline
from forwardpass.serve.repository import Repository
from forwardpass.serve.responses import json_response
from forwardpass.serve.served import Described, Served

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Metric

__all__ = ["MetricsRoutes", "describe_statistics"]

NANOSECONDS = 1e9
LABELS = ("model", "version")
REQUEST_SECONDS = "forwardpass_request_seconds"


class MetricsRoutes:
    """`/metrics` and `/v2/models/…/stats`."""

    def __init__(self, repository: Repository, *, is_ready: Callable[[], bool]) -> None:
        self._repository = repository
        self._is_ready = is_ready
        self._registry: CollectorRegistry | None = None

    def prometheus(self, exchange: Exchange) -> None:
        """Answer in Prometheus' text format."""
        from prometheus_client import CollectorRegistry
        from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

        if self._registry is None:
            self._registry = CollectorRegistry(auto_describe=False)
            self._registry.register(_Collector(self._repository, self._is_ready))
        body = generate_latest(self._registry)
        exchange.respond(Response(status=200, body=body, content_type=CONTENT_TYPE_PLAIN_0_0_4))

    def statistics(self, model: Served, version: str | None, exchange: Exchange) -> None:
        """Answer the statistics of a model."""
        exchange.respond(json_response({"model_stats": describe_statistics(model, version)}))

    def all_statistics(self, exchange: Exchange) -> None:
        """Answer the statistics of all models."""
        models = self._repository.served.values()
        exchange.respond(
            json_response({"model_stats": [line for model in models for line in describe_statistics(model)]})
        )


def describe_statistics(model: Served, version: str | None = None) -> list[dict[str, object]]:
    """Return the statistics of a model's versions as Triton's extension has them: counts, and nanoseconds."""
    chosen = model.versions.values() if version is None else (model.described(version),)
    return [_statistics(model.name, one) for one in chosen]


def _statistics(name: str, version: Described) -> dict[str, object]:
    metrics = version.metrics
    nothing = _duration(0, 0.0)
    return {
        "name": name,
        "version": version.number,
        "last_inference": int(metrics.last_s * 1e3),
        "inference_count": metrics.num_rows,
        "execution_count": metrics.compute.num_values,
        "inference_stats": {
            "success": _duration(metrics.total.num_values, metrics.total.total),
            "fail": _duration(metrics.num_failed, metrics.failed_s),
            "queue": _duration(metrics.queue.num_values, metrics.queue.total),
            "compute_input": nothing,
            "compute_infer": _duration(metrics.compute.num_values, metrics.compute.total),
            "compute_output": nothing,
            "cache_hit": nothing,
            "cache_miss": nothing,
        },
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": nothing,
                "compute_infer": _duration(counted.num_batches, counted.compute_s),
                "compute_output": nothing,
            }
            for size, counted in sorted(metrics.by_size.items())
        ],
    }


def _duration(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": int(seconds * NANOSECONDS)}


class _Collector:
    """Makes Prometheus' families of the models that are there when they are asked for."""

    def __init__(self, repository: Repository, is_ready: Callable[[], bool]) -> None:
        self._repository = repository
        self._is_ready = is_ready

    def collect(self) -> Iterator[Metric]:
        """Return the families that have something to tell: a name without a value would tell nothing."""
        return (family for family in self._families() if family.samples)

    def _families(self) -> Iterator[Metric]:
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

        info = GaugeMetricFamily("forwardpass_info", "The version of forwardpass.", labels=("version",))
        info.add_metric((VERSION,), 1)
        yield info
        ready = GaugeMetricFamily("forwardpass_ready", "Whether every model answers.")
        ready.add_metric((), self._is_ready())
        yield ready
        dropped = CounterMetricFamily("forwardpass_log_lines_dropped", "Lines of the log that could not be written.")
        dropped.add_metric((), num_dropped_lines())
        yield dropped
        versions = [version for model in self._repository.models.values() for version in model.versions.values()]
        pipelines = self._repository.pipelines
        everything: list[Described] = [*versions, *pipelines]
        for name, text, of in HISTOGRAMS:
            counted = everything if name == REQUEST_SECONDS else versions  # only models have queues and batches
            yield _histograms(name, text, [(one, of(one.metrics)) for one in counted])
        shadows = [version for model in self._repository.models.values() for version in model.compared]
        yield _histograms(
            "forwardpass_shadow_difference",
            "How far the shadow's answers are from those of the version that answered, relative to the largest value.",
            [(version, version.metrics.shadow_difference) for version in shadows],
        )
        outcomes = CounterMetricFamily("forwardpass_requests", "Requests by outcome.", labels=(*LABELS, "outcome"))
        closed = CounterMetricFamily(
            "forwardpass_batches", "Batches by why they were closed.", labels=(*LABELS, "reason")
        )
        wide = CounterMetricFamily(
            "forwardpass_wide_batches", "Batches of a lone request that ran on all cores.", labels=LABELS
        )
        rows = CounterMetricFamily("forwardpass_rows", "Rows that were answered.", labels=LABELS)
        lost = CounterMetricFamily("forwardpass_workers_lost", "Worker processes that ended unasked.", labels=LABELS)
        withdrawals = CounterMetricFamily(
            "forwardpass_withdrawals", "Times a version lost its share of a split.", labels=(*LABELS, "reason")
        )
        waiting = GaugeMetricFamily("forwardpass_waiting_requests", "Requests in the queue.", labels=LABELS)
        up = GaugeMetricFamily("forwardpass_model_ready", "Whether a worker answers.", labels=LABELS)
        for one in everything:
            who = (one.model, one.number)
            for outcome, count in one.metrics.outcomes.items():
                outcomes.add_metric((*who, outcome), count)
            rows.add_metric(who, one.metrics.num_rows)
            up.add_metric(who, one.is_ready)
        for version in versions:
            who = (version.model, version.number)
            for reason, count in version.metrics.reasons.items():
                closed.add_metric((*who, reason.value), count)
            if version.sizing.wide is not None:
                wide.add_metric(who, version.metrics.num_wide_batches)
            lost.add_metric(who, version.metrics.num_workers_lost)
            for withdrawn, count in version.metrics.withdrawals.items():
                withdrawals.add_metric((*who, withdrawn), count)
            waiting.add_metric(who, version.statistics().num_waiting)
        yield from (outcomes, closed, wide, rows, lost, withdrawals, waiting, up)
        if pipelines:
            yield from _of_pipelines(pipelines)


HISTOGRAMS: tuple[tuple[str, str, Callable[[ModelMetrics], Histogram]], ...] = (
    (REQUEST_SECONDS, "From arrival to answer, of answered requests.", lambda metrics: metrics.total),
    ("forwardpass_queue_seconds", "From arrival until the batch starts.", lambda metrics: metrics.queue),
    ("forwardpass_compute_seconds", "How long a batch runs.", lambda metrics: metrics.compute),
    ("forwardpass_batch_rows", "Rows in a batch.", lambda metrics: metrics.batch_rows),
)


def _of_pipelines(pipelines: Sequence[Pipeline]) -> Iterator[Metric]:
    from prometheus_client.metrics_core import GaugeMetricFamily, HistogramMetricFamily

    on_their_way = GaugeMetricFamily(
        "forwardpass_pipeline_in_flight", "Requests between the first and the last step.", labels=("pipeline",)
    )
    steps = HistogramMetricFamily(
        "forwardpass_pipeline_step_seconds",
        "How long a step takes, from submitting to its model to the answer.",
        labels=("pipeline", "step", "model"),
    )
    for pipeline in pipelines:
        on_their_way.add_metric((pipeline.name,), pipeline.num_in_flight)
        for number, (step, seconds) in enumerate(zip(pipeline.config.steps, pipeline.step_seconds, strict=True), 1):
            who = (pipeline.name, str(number), step.model)
            steps.add_metric(who, seconds.cumulative(), sum_value=seconds.total)
    yield from (on_their_way, steps)


def _histograms(name: str, text: str, counted: Iterable[tuple[Described, Histogram]]) -> Metric:
    from prometheus_client.metrics_core import HistogramMetricFamily

    family = HistogramMetricFamily(name, text, labels=LABELS)
    for version, histogram in counted:
        family.add_metric((version.model, version.number), histogram.cumulative(), sum_value=histogram.total)
    return family
