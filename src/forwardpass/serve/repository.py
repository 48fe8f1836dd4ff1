"""Where models come from, and how versions come and go while requests are being answered.

A new version is started beside the old one, checks its golden answers, and takes over in one step; the old one answers
what it has accepted and ends. Whatever fails on the way leaves the old one as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from forwardpass.bundle import Bundle, is_bundle, open_bundle, versions_in
from forwardpass.bundle.manifest import MANIFEST_NAME
from forwardpass.core.canary import Verdict
from forwardpass.core.tensors import Signature
from forwardpass.errors import (
    BundleError,
    ForwardpassError,
    InvalidOption,
    InvalidPipelines,
    MalformedRequest,
    NotFound,
)
from forwardpass.serve.models import Model, ModelConfig, Traffic
from forwardpass.serve.pipelines import VERSION, Pipeline
from forwardpass.serve.planning import PipelineConfig, StepConfig, plan_pipeline, planning_order, tell_cycles
from forwardpass.serve.served import Served
from forwardpass.serve.settings import ModelSettings
from forwardpass.serve.versions import ModelVersion

__all__ = ["IndexEntry", "Repository", "check_traffic", "models_in"]

MODEL_NAME = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,64}", re.ASCII)

log = logging.getLogger("forwardpass.serve")


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexEntry:
    """One line of the repository's index."""

    name: str
    version: str
    state: str
    reason: str


class Repository:
    """The models of a server: those of `configs`, and the subfolders of `root`; and the pipelines made of them."""

    def __init__(
        self,
        configs: Sequence[ModelConfig],
        *,
        pipelines: Sequence[PipelineConfig] = (),
        root: Path | None,
        defaults: ModelSettings,
        grace_s: float,
        on_change: Callable[[], None],
    ) -> None:
        self._configs = {config.name: config for config in configs}
        self._root = root
        self._defaults = defaults
        self._grace_s = grace_s
        self._on_change = on_change
        self._fingerprints: dict[str, tuple[object, ...]] = {}
        self._failures: dict[str, ForwardpassError] = {}
        self._unloaded: set[str] = set()
        self._locks: dict[str, asyncio.Lock] = {}
        self._draining: set[asyncio.Task[None]] = set()
        self.models: dict[str, Model] = {}
        self._pipelines = {config.name: Pipeline(config, self.find) for config in planning_order(pipelines)}
        self._has_pipelines = False
        """They are planned once all models are there."""

    @property
    def served(self) -> Mapping[str, Served]:
        """Everything that answers to a name: models and pipelines."""
        return {**self.models, **self._pipelines} if self._has_pipelines else self.models

    def find(self, name: str) -> Served | None:
        """Return what answers to a name."""
        if self._has_pipelines and name in self._pipelines:
            return self._pipelines[name]
        return self.models.get(name)

    @property
    def pipelines(self) -> Sequence[Pipeline]:
        """The pipelines that answer."""
        return tuple(self._pipelines.values()) if self._has_pipelines else ()

    async def start(self) -> None:
        """Load every model. One that cannot be loaded ends the start, unless it is one of several in the folder.

        Raises:
            ForwardpassError: a model cannot be loaded.
            InvalidPipelines: the steps of pipelines do not fit together; every mistake is named.
        """
        for name in self._known():
            try:
                await self._load_named(name)
            except ForwardpassError:
                if name in self._configs or len(self._known()) == 1:
                    raise
        names = [*self._failures]
        for name in names if self.models else names[1:]:  # the first is told by who catches it
            _tell_failure(name, self._failures[name])
        if not self.models and names:
            raise self._failures[names[0]]
        if self._pipelines:
            self._start_pipelines()

    def _start_pipelines(self) -> None:
        mistakes = tell_cycles([pipeline.config for pipeline in self._pipelines.values()])
        taken = [name for name in self._pipelines if name in self.models]
        mistakes += [f"pipeline '{name}': a model has this name already" for name in taken]
        self._has_pipelines = True
        mistakes += self._plan()
        if mistakes:
            raise InvalidPipelines(mistakes=mistakes)
        self._on_change()

    async def stop(self) -> None:
        """Drain and end everything."""
        models, self.models = self.models, {}
        self._has_pipelines = False
        self._on_change()
        versions = [version for model in models.values() for version in model.versions.values()]
        await asyncio.gather(*(version.drain(0.0) for version in versions), *self._draining)

    async def load(self, name: str) -> None:
        """Load a model, or what has changed of it since.

        Raises:
            NotFound: there is no such model.
            ForwardpassError: it cannot be loaded; what was served is still served.
        """
        self._refuse_pipeline(name)
        before = self._failures.get(name)
        try:
            await self._load_named(name)
        except ForwardpassError as error:
            if name in self._failures and str(error) != str(before):
                _tell_failure(name, error)
            raise
        if before is not None:
            log.info("%s is served again as it is on the disk", name)

    async def _load_named(self, name: str) -> None:
        self._config(name)  # which says that there is no such model
        async with self._locks.setdefault(name, asyncio.Lock()):
            try:
                await self._load(self._config(name))
            except ForwardpassError as error:
                self._failures[name] = error
                raise
            self._failures.pop(name, None)
            self._unloaded.discard(name)

    async def unload(self, name: str) -> None:
        """Take a model out of service once it has answered what it accepted.

        Raises:
            NotFound: it is not loaded.
        """
        self._refuse_pipeline(name)
        if name not in self.models:
            raise NotFound(what=f"model '{name[:64]}'", available=tuple(self.models))
        async with self._locks.setdefault(name, asyncio.Lock()):
            model = self.models.pop(name, None)
            self._unloaded.add(name)
            self._changed()
            if model is not None:
                log.info("%s is unloaded", name)
                await asyncio.gather(*(version.drain(self._grace_s) for version in model.versions.values()))

    async def set_traffic(self, name: str, traffic: Traffic) -> None:
        """Change labels, split and shadow of a model; versions that they name are loaded.

        Raises:
            ForwardpassError: it names a version that does not exist or cannot be loaded, or a shadow that is none.
        """
        self._refuse_pipeline(name)
        self._config(name)  # which says that there is no such model
        async with self._locks.setdefault(name, asyncio.Lock()):
            await self._try_traffic(name, traffic)
        self._failures.pop(name, None)
        self._unloaded.discard(name)
        set_to = {"labels": traffic.labels, "split": traffic.split, "shadow": traffic.shadow}
        words = ", ".join(f"{key}={value}" for key, value in set_to.items() if value)
        log.info("the traffic of %s is set: %s", name, words or "the newest version gets all")

    async def _try_traffic(self, name: str, traffic: Traffic) -> None:
        """Load with other traffic; nobody else may load meanwhile, as it would be with traffic that may be refused."""
        previous = self._configs.get(name)
        self._configs[name] = replace(self._config(name), traffic=traffic)
        try:
            check_traffic(self._config(name))
            await self._load(self._config(name))
        except ForwardpassError as error:
            log.warning("the traffic of %s stays as it was: %s", name, error)
            if previous is None:
                del self._configs[name]
            else:
                self._configs[name] = previous
            raise

    async def watch(self, interval_s: float) -> None:
        """Look for changes until cancelled, and load what has changed; a bundle that is being copied is tried again."""
        seen = {name: self._look(name) for name in self._known()}
        while True:
            await asyncio.sleep(interval_s)
            for name in self._known():
                look = self._look(name)
                may_be_incomplete = isinstance(self._failures.get(name), BundleError)
                if name in self._unloaded or (look == seen.get(name) and not may_be_incomplete):
                    continue
                seen[name] = look
                with contextlib.suppress(ForwardpassError):  # load has told it
                    await self.load(name)

    def index(self) -> list[IndexEntry]:
        """Return every version that is served, and why a model is not, or not as it is on the disk now."""
        entries = []
        for name in sorted({*self._known(), *self.models}):
            model = self.models.get(name)
            for version in model.versions.values() if model is not None else ():
                reason = "" if version.is_ready else "its worker process is being started again"
                if version.is_ready and model is not None and (why := model.traffic.withdrawn.get(version.number)):
                    reason = f"taken out of the split: {why}"
                state = "READY" if version.is_ready else "UNAVAILABLE"
                entries.append(IndexEntry(name=name, version=version.number, state=state, reason=reason))
            if why := self._why_not_loaded(name):
                entries.append(IndexEntry(name=name, version="", state="UNAVAILABLE", reason=why))
        for pipeline in self.pipelines:
            reason = "" if pipeline.is_ready else pipeline.problem or "a model of it does not answer now"
            state = "UNAVAILABLE" if reason else "READY"
            entries.append(IndexEntry(name=pipeline.name, version=VERSION, state=state, reason=reason))
        return entries

    def _why_not_loaded(self, name: str) -> str:
        """Return why a model is not served, or not as it is on the disk now; nothing where it is."""
        failure = self._failures.get(name)
        if name in self.models:
            return f"what is on the disk now could not be loaded, what was loaded goes on: {failure}" if failure else ""
        return "unloaded" if name in self._unloaded else str(failure or "not loaded")

    @property
    def is_ready(self) -> bool:
        """Whether every model that is meant to be served answers."""
        meant = {*self._known()} - self._unloaded
        are_ready = bool(self.models) and all(name in self.models and self.models[name].is_ready for name in meant)
        return are_ready and all(pipeline.is_ready or self._is_without(pipeline) for pipeline in self.pipelines)

    def _is_without(self, pipeline: Pipeline) -> bool:
        """Tell whether an operator has unloaded a model that the pipeline needs."""
        models = [step.model for step in pipeline.config.steps]
        inner = [self._pipelines[name] for name in models if name in self._pipelines]
        return not self._unloaded.isdisjoint(models) or any(self._is_without(one) for one in inner)

    async def _load(self, config: ModelConfig) -> None:
        current = self.models.get(config.name)
        served = dict(current.versions) if current is not None else {}
        kept: dict[str, ModelVersion] = {}
        fresh: dict[str, ModelVersion] = {}
        try:
            for number, path in wanted_versions(config).items():
                key = f"{config.name}/{number}"
                fingerprint = (*_fingerprint(path), config.settings)
                if number in served and self._fingerprints.get(key) == fingerprint:
                    kept[number] = served[number]
                    continue
                bundle = await asyncio.to_thread(open_bundle, path)
                fresh[number] = await self._start(bundle, config, number)
                self._fingerprints[key] = fingerprint
            model = self._model(self._latest(config, {**kept, **fresh}), [*kept.values(), *fresh.values()])
        except BaseException:
            for number, version in fresh.items():
                self._fingerprints.pop(f"{config.name}/{number}", None)
                await version.stop()
            raise
        self.models[config.name] = model
        self._changed()
        for version in fresh.values():
            log.info("loaded: %s", version.describe())
            for warning in version.warnings():
                log.warning(warning)
        self._retire([version for number, version in served.items() if kept.get(number) is not version])

    def _model(self, config: ModelConfig, versions: Sequence[ModelVersion]) -> Model:
        before = self.models.get(config.name)
        model = Model(config.name, versions, config.traffic, on_verdict=partial(self._withdraw, config))
        if model.has_idle_shadow and not (before is not None and before.has_idle_shadow):
            log.warning("%s: its shadow answers every request itself now, so there is nothing to compare", config.name)
        return model

    def _latest(self, config: ModelConfig, loaded: Mapping[str, ModelVersion]) -> ModelConfig:
        """Return the configuration that holds now: a version may have been taken out while others were loaded."""
        latest = self._configs.get(config.name, config)
        return latest if latest.traffic.withdrawn and loaded.keys() >= set(latest.traffic.wanted) else config

    def _withdraw(self, config: ModelConfig, number: str, verdict: Verdict) -> None:
        """Give the share of a version back to the stable one; it stays loaded, for those who name it."""
        name, model = config.name, self.models.get(config.name)
        if model is None or model.traffic is not config.traffic:
            return  # somebody else has decided in the meantime
        reason = str(verdict)
        traffic = config.traffic.without(number, reason)
        log.warning(
            "%s version %s is taken out of the split, and its share goes to version %s: %s",
            name,
            number,
            traffic.stable,
            reason,
        )
        model.versions[number].metrics.withdrawals[verdict.outcome] += 1
        self._configs[name] = replace(config, traffic=traffic)
        self.models[name] = self._model(self._configs[name], [*model.versions.values()])
        self._changed()

    def traffic(self, name: str) -> Traffic:
        """Return who gets which version of a model.

        Raises:
            NotFound: there is no such model.
        """
        self._refuse_pipeline(name)
        return self._config(name).traffic

    async def _start(self, bundle: Bundle, config: ModelConfig, number: str) -> ModelVersion:
        version = ModelVersion(bundle, model=config.name, number=number, settings=config.settings)
        await version.start()
        return version

    def _retire(self, versions: Sequence[ModelVersion]) -> None:
        for version in versions:
            task = asyncio.ensure_future(version.drain(self._grace_s))
            self._draining.add(task)
            task.add_done_callback(self._draining.discard)

    def _changed(self) -> None:
        """Plan the pipelines again, tell what is wrong with them now, and let the routes follow."""
        if self._has_pipelines:
            for mistake in self._plan():
                log.warning("%s", mistake)
        self._on_change()

    def _plan(self) -> list[str]:
        """Plan every pipeline with what is loaded; return the mistakes that were not there before."""
        fresh = []
        for pipeline in self._pipelines.values():
            plan, mistakes = plan_pipeline(pipeline.config, self._signature_of)
            problem = "; ".join(mistakes)
            if problem != pipeline.problem:
                fresh += mistakes
            if plan is not None:
                pipeline.use(plan)
            else:
                pipeline.problem = problem
        return fresh

    def _signature_of(self, step: StepConfig) -> Signature | str:
        """Return what a step's model takes and gives, or why that is not known."""
        inner = self._pipelines.get(step.model)
        if inner is not None:
            if step.version not in (None, VERSION):
                return f"a pipeline has the version {VERSION} alone"
            return "this pipeline cannot be served itself" if inner.problem else inner.signature
        model = self.models.get(step.model)
        if model is None:
            failure = self._failures.get(step.model)
            there = ", ".join(name for name in self.models) or "none"
            return f"it could not be loaded: {failure}" if failure else f"there is no such model; there are {there}"
        try:
            versions = model.choices(step.version)
        except NotFound as error:
            return f"{str(error)[:1].lower()}{str(error)[1:]}".rstrip(".")
        if any(version.signature != versions[0].signature for version in versions):
            numbers = " and ".join(version.number for version in versions)
            return f"its versions {numbers}, which share the requests, have different tensors; name one of them"
        return versions[0].signature

    def _refuse_pipeline(self, name: str) -> None:
        if name in self._pipelines:
            raise MalformedRequest(reason=f"'{name}' is a pipeline; it follows its models and has no state of its own")

    def _known(self) -> tuple[str, ...]:
        """Return the names of all models; a folder that gets a pipeline's name later is left alone."""
        taken = self._pipelines if self._has_pipelines else ()
        return tuple(name for name in dict.fromkeys((*self._configs, *self._found())) if name not in taken)

    def _found(self) -> Sequence[str]:
        return models_in(self._root) if self._root is not None else ()

    def _config(self, name: str) -> ModelConfig:
        if name in self._configs:
            return self._configs[name]
        if self._root is None or name not in self._found():
            raise NotFound(what=f"model '{name[:64]}'", available=self._known())
        return ModelConfig(name=name, path=self._root / name, settings=self._defaults)

    def _look(self, name: str) -> Mapping[str, tuple[object, ...]]:
        try:
            return {number: _fingerprint(path) for number, path in wanted_versions(self._config(name)).items()}
        except ForwardpassError:
            return {}


def _tell_failure(name: str, error: ForwardpassError) -> None:
    log.error("%s could not be loaded: %s", name, error)


def models_in(root: Path) -> Sequence[str]:
    """Return the names of the models in the subfolders of a repository."""
    if not root.is_dir():
        return ()
    return sorted(path.name for path in root.iterdir() if MODEL_NAME.fullmatch(path.name) and _has(path))


def _has(path: Path) -> bool:
    return is_bundle(path) or bool(versions_in(path))


def wanted_versions(config: ModelConfig) -> dict[str, Path]:
    """Return the versions that the traffic names, and the newest where these do not share out all requests.

    Raises:
        NotFound: a version is named that is not there.
        BundleError: there is none at all.
    """
    found = {"1": config.path} if is_bundle(config.path) else versions_in(config.path)
    if not found:
        open_bundle(config.path)  # which says what is wrong with it
        raise AssertionError("a folder without a manifest is no bundle")
    for number in config.traffic.wanted:
        if number not in found:
            raise NotFound(what=f"version '{number}' of '{config.name}'", available=tuple(sorted(found, key=int)))
    default = [] if config.traffic.split else [config.traffic.default(found)]
    return {number: found[number] for number in dict.fromkeys((*config.traffic.wanted, *default))}


def check_traffic(config: ModelConfig) -> None:
    """Check the traffic of a model against the versions that are there.

    Raises:
        NotFound: a version is named that is not there.
        BundleError: there is none at all.
        InvalidOption: the shadow would have nobody to be compared with.
    """
    if config.traffic.shadows_itself(wanted_versions(config)):
        expected = "another version than the one that answers the requests"
        raise InvalidOption(option="shadow", value=config.traffic.shadow or "", expected=expected)


def _fingerprint(path: Path) -> tuple[object, ...]:
    """Return what changes when a bundle is replaced: its manifest holds the hash of everything else."""
    try:
        status = (path / MANIFEST_NAME).stat()
    except OSError:
        return ()
    return (status.st_ino, status.st_size, status.st_mtime_ns)
