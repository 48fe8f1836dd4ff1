"""Pipelines in use: a request goes through the steps of one, each with what is left of its time.

Nothing of a pipeline runs by itself: its steps are requests to models like anybody's, so they share batches with
others, keep to the order of deadlines, and are counted where they run.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from forwardpass.core.batching import NORMAL_PRIORITY
from forwardpass.core.protocols import Decoder, Encoder, StreamingDecoder
from forwardpass.core.tensors import Array, Signature, Tensors
from forwardpass.errors import (
    DeadlineExceeded,
    InputRejected,
    NotFound,
    NotReady,
    Overloaded,
    RequestError,
    TensorMismatch,
)
from forwardpass.serve.forms import example_of, file_fields
from forwardpass.serve.metrics import Histogram, ModelMetrics, latency_edges
from forwardpass.serve.oip import ResponseWriter
from forwardpass.serve.planning import Names, PipelineConfig, PipelinePlan, PlannedStep
from forwardpass.serve.request import Answer, Result
from forwardpass.serve.served import Described, Served, ServedVersion
from forwardpass.serve.tracing import Trace

__all__ = ["VERSION", "Pipeline"]

VERSION = "1"
"""A pipeline has no versions of its own: those of its models are what changes."""
DEFAULT_TIMEOUT_S = 30.0
LEAST_WAIT_S = 0.1
"""How long a client that is refused is told to wait at least."""


class Pipeline:
    """One pipeline: `Served` and its only version at once. It is planned again whenever models come or go."""

    number = VERSION
    names = (VERSION,)

    def __init__(self, config: PipelineConfig, lookup: Callable[[str], Served | None]) -> None:
        self.config = config
        self.name = self.model = config.name
        self.timeout_s = config.timeout_s or (config.slo.limit_s if config.slo else DEFAULT_TIMEOUT_S)
        edges = latency_edges(config.slo.limit_s if config.slo else None)
        self.metrics = ModelMetrics(slo_s=config.slo.limit_s if config.slo else None)
        self.step_seconds = [Histogram(edges) for _ in config.steps]
        self.writer = ResponseWriter(config.name, VERSION)
        self.num_in_flight = 0
        self.problem = "it has not been planned"
        """Why it cannot be used now; empty if it can."""
        self._lookup = lookup
        self._plan: PipelinePlan | None = None

    def use(self, plan: PipelinePlan) -> None:
        """Run by this plan from now on; requests on their way keep theirs."""
        self._plan, self.problem = plan, ""

    @property
    def plan(self) -> PipelinePlan:
        """How it is run, or was when it last could be."""
        assert self._plan is not None, "a pipeline that was never planned is not served"
        return self._plan

    @property
    def signature(self) -> Signature:
        """The inputs of the first step and the outputs of the last."""
        return self.plan.signature

    @property
    def versions(self) -> Mapping[str, Described]:
        """The only one."""
        return {VERSION: self}

    @property
    def default(self) -> Described:
        """The only one."""
        return self

    @property
    def encoder(self) -> Encoder | None:
        """The processor of the first step."""
        step = self._described(0)
        return _encoder(step, self.plan.steps[0]) if step is not None else None

    @property
    def decoder(self) -> Decoder | None:
        """The processor of the last step."""
        step = self._described(-1)
        return _decoder(step, self.plan.steps[-1]) if step is not None else None

    @property
    def is_ready(self) -> bool:
        """Whether it fits together and every model in it answers."""
        steps = [self._described(number) for number in range(len(self.plan.steps))]
        return not self.problem and all(step is not None and step.is_ready for step in steps)

    def described(self, name: str | None) -> Described:
        """Return itself."""
        self._check(name)
        return self

    def describe(self) -> str:
        """Return its steps in a few words."""
        steps = (step.model + (f" ({step.version})" if step.version else "") for step in self.plan.steps)
        return f"{self.name} (pipeline: {' → '.join(steps)})"

    def version(self, name: str | None) -> _Passage:
        """Return a passage for one request, with the versions that its steps will use.

        Raises:
            NotFound: there is no such version.
            NotReady: a model is not there.
        """
        self._check(name)
        if self.problem:
            raise NotReady(reason=self.problem)
        return _Passage(self, [self._pin(number) for number in range(len(self.plan.steps))])

    def submit(
        self,
        version: ServedVersion,
        tensors: dict[str, Array],
        num_rows: int,
        answer: Answer,
        *,
        timeout_s: float | None = None,
        priority: int = NORMAL_PRIORITY,
        trace: Trace | None = None,
    ) -> Callable[[], None]:
        """Start a request on its passage; its trace sees the queue and the batch of every step."""
        assert isinstance(version, _Passage), "it was returned by version()"
        return version.submit(tensors, num_rows, answer, timeout_s=timeout_s, priority=priority, trace=trace)

    def retry_after_s(self) -> float:
        """Return after how long a place should be free: what a request takes on average."""
        total = self.metrics.total
        return max(total.total / total.num_values, LEAST_WAIT_S) if total.num_values else LEAST_WAIT_S

    def _check(self, name: str | None) -> None:
        if name not in (None, VERSION):
            raise NotFound(what=f"version '{(name or '')[:64]}' of '{self.name}'", available=self.names)

    def _described(self, number: int) -> Described | None:
        step = self.plan.steps[number]
        served = self._lookup(step.model)
        if served is None or (step.version is not None and step.version not in served.names):
            return None
        return served.described(step.version)

    def _pin(self, number: int) -> _Pinned:
        step = self.plan.steps[number]
        served = self._lookup(step.model)
        if served is None:
            raise NotReady(reason=f"the model '{step.model}' of this pipeline is not loaded")
        return _Pinned(served, served.version(step.version))


class _Pinned:
    """The version of a step's model that a request will use."""

    __slots__ = ("served", "version")

    def __init__(self, served: Served, version: ServedVersion) -> None:
        self.served = served
        self.version = version


class _Passage:
    """The way of one request through a pipeline: all its steps belong to the moment when it came in.

    So one version's processor never encodes for another version's model. The versions are held: one that is replaced in
    the meantime stays until the last passage has used it.
    """

    number = VERSION

    def __init__(self, pipeline: Pipeline, steps: list[_Pinned]) -> None:
        self.pipeline = pipeline
        self.model = pipeline.name
        self.plan = pipeline.plan
        self.steps = steps
        self.signature = self.plan.signature
        self.writer = pipeline.writer
        self.metrics = pipeline.metrics

    @property
    def encoder(self) -> Encoder | None:
        return _encoder(self.steps[0].version, self.plan.steps[0])

    @property
    def decoder(self) -> Decoder | None:
        return _decoder(self.steps[-1].version, self.plan.steps[-1])

    @property
    def is_ready(self) -> bool:
        return self.pipeline.is_ready

    def describe(self) -> str:
        return self.pipeline.describe()

    def hold(self) -> None:
        for step in self.steps:
            step.version.hold()

    def release(self) -> None:
        for step in self.steps:
            step.version.release()

    @property
    def timeout_s(self) -> float:
        return self.pipeline.timeout_s

    def failed(self, error: RequestError) -> None:
        self.metrics.finished(error, 0.0, 0)

    def submit(
        self,
        tensors: dict[str, Array],
        num_rows: int,
        answer: Answer,
        *,
        timeout_s: float | None = None,
        priority: int = NORMAL_PRIORITY,
        trace: Trace | None = None,
    ) -> Callable[[], None]:
        """Run the first step; the others follow.

        Raises:
            Overloaded: too many requests are on their way, or the first model refuses this one.
            NotReady: the first model has been stopped.
        """
        run = _Run(
            self,
            tensors,
            num_rows,
            answer,
            timeout_s=self.pipeline.timeout_s if timeout_s is None else timeout_s,
            priority=priority,
            trace=trace,
        )
        try:
            run.start()
        except RequestError as error:
            self.failed(error)
            raise
        return run.give_up


class _Run:
    """One request on its way. It is answered once, or given up."""

    def __init__(
        self,
        passage: _Passage,
        tensors: dict[str, Array],
        num_rows: int,
        answer: Answer,
        *,
        timeout_s: float,
        priority: int,
        trace: Trace | None,
    ) -> None:
        self._passage = passage
        self._pipeline = passage.pipeline
        self._loop = asyncio.get_running_loop()
        self._tensors = tensors
        self._num_rows = num_rows
        self._answer = answer
        self._timeout_s = timeout_s
        self._priority = priority
        self._trace = trace
        self._begun_s = self._step_begun_s = time.monotonic()
        self._at = 0
        self._num_held = 0
        self._is_over = False
        self._give_up_step: Callable[[], None] | None = None

    def start(self) -> None:
        """Take a place and submit the first step.

        Raises:
            RequestError: it is refused; then nothing is left of it.
        """
        pipeline = self._pipeline
        if pipeline.num_in_flight >= pipeline.config.max_in_flight:
            reason = f"{pipeline.num_in_flight} requests are in the pipeline '{pipeline.name}'"
            raise Overloaded(retry_after_s=pipeline.retry_after_s(), reason=reason)
        pipeline.num_in_flight += 1
        self._passage.hold()
        self._num_held = len(self._passage.steps)
        try:
            self._submit()
        except RequestError:
            self._leave()
            raise

    def give_up(self) -> None:
        """Give up the step that runs, and with it all that would follow."""
        if not self._is_over:
            give_up_step = self._give_up_step
            self._leave()
            if give_up_step is not None:
                give_up_step()

    def _submit(self) -> None:
        """Submit the step that is due, with the time that is left."""
        planned, pinned = self._passage.plan.steps[self._at], self._passage.steps[self._at]
        self._step_begun_s = time.monotonic()
        left_s = self._begun_s + self._timeout_s - self._step_begun_s
        if left_s <= 0:
            raise DeadlineExceeded(deadline_s=self._timeout_s)
        tensors = {name: self._tensors[source] for name, source in planned.takes}
        num_rows = self._num_rows if self._at == 0 else self._count_rows(planned.model, pinned, tensors)
        self._give_up_step = pinned.served.submit(
            pinned.version,
            tensors,
            num_rows,
            partial(self._on_answer, self._at),
            timeout_s=left_s,
            priority=self._priority,
            trace=self._trace,
        )
        pinned.version.release()
        self._num_held -= 1

    def _count_rows(self, model: str, pinned: _Pinned, tensors: dict[str, Array]) -> int:
        try:
            return pinned.version.signature.validate(tensors)
        except TensorMismatch as error:  # of sizes that only this request has, made by the steps before
            raise InputRejected(model=model, kind=str(error).rstrip(".")) from error

    def _on_answer(self, number: int, result: Result) -> None:
        """Keep what later steps need. The next one waits for the loop: the model underneath still gives out answers."""
        if self._is_over:
            return
        self._pipeline.step_seconds[number].observe(time.monotonic() - self._step_begun_s)
        if isinstance(result, RequestError):
            self._finish(self._told(result))
            return
        steps = self._passage.plan.steps
        if number == len(steps) - 1:
            self._finish({name: result[output] for output, name in steps[number].gives})
            return
        self._tensors |= {name: result[output].copy() for output, name in steps[number].gives}
        self._at += 1
        self._give_up_step = None
        self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if self._is_over:
            return
        try:
            self._submit()
        except RequestError as error:
            self._finish(self._told(error))

    def _told(self, error: RequestError) -> RequestError:
        """Return what the client hears: its deadline was for the whole."""
        return DeadlineExceeded(deadline_s=self._timeout_s) if isinstance(error, DeadlineExceeded) else error

    def _finish(self, result: Result) -> None:
        self._leave()
        self._pipeline.metrics.finished(result, time.monotonic() - self._begun_s, self._num_rows)
        self._answer(result)

    def _leave(self) -> None:
        """Give the place back, and let go of the versions that were not used."""
        self._is_over = True
        self._give_up_step = None  # it leads back here: the circle would keep the tensors until the collector runs
        self._pipeline.num_in_flight -= 1
        steps = self._passage.steps
        for step in steps[len(steps) - self._num_held :]:
            step.version.release()
        self._num_held = 0


class _RenamingEncoder:
    """The processor of a first step whose tensors have other names in the pipeline."""

    def __init__(self, encoder: Encoder, names: Mapping[str, str]) -> None:
        self._encoder = encoder
        self._names = names
        self.file_fields = file_fields(encoder)
        self.example = example_of(encoder)

    def encode(self, request: Mapping[str, object]) -> dict[str, Array]:
        return {self._names.get(name, name): array for name, array in self._encoder.encode(request).items()}


class _RenamingDecoder:
    """The processor of a last step whose tensors have other names in the pipeline."""

    def __init__(self, decoder: Decoder, names: Mapping[str, str]) -> None:
        self._decoder = decoder
        self._names = names

    def decode(self, outputs: Tensors) -> Mapping[str, object]:
        return self._decoder.decode(self._renamed(outputs))

    def _renamed(self, outputs: Tensors) -> dict[str, Array]:
        return {self._names.get(name, name): array for name, array in outputs.items()}


class _RenamingStreamer(_RenamingDecoder):
    def __init__(self, decoder: StreamingDecoder, names: Mapping[str, str]) -> None:
        super().__init__(decoder, names)
        self._streamer = decoder

    def stream(self, outputs: Tensors) -> Iterator[Mapping[str, object]]:
        return self._streamer.stream(self._renamed(outputs))


def _encoder(version: Described, step: PlannedStep) -> Encoder | None:
    encoder = version.encoder
    return encoder if encoder is None or _are_alike(step.takes) else _RenamingEncoder(encoder, dict(step.takes))


def _decoder(version: Described, step: PlannedStep) -> Decoder | None:
    decoder = version.decoder
    if decoder is None or _are_alike(step.gives):
        return decoder
    names = {name: output for output, name in step.gives}
    if isinstance(decoder, StreamingDecoder):
        return _RenamingStreamer(decoder, names)
    return _RenamingDecoder(decoder, names)


def _are_alike(names: Names) -> bool:
    return all(ours == theirs for ours, theirs in names)
