"""The configuration file of a server: TOML, checked as a whole, with every mistake told at once."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import msgspec

from forwardpass.bundle import check_variant, has_versions, is_bundle, read_name
from forwardpass.core.slo import Slo
from forwardpass.errors import BundleError, ForwardpassError, InvalidConfig
from forwardpass.serve.auth import read_keys
from forwardpass.serve.control import RollbackBody, TrafficBody
from forwardpass.serve.models import ModelConfig
from forwardpass.serve.planning import PipelineConfig, StepConfig, tell_cycles
from forwardpass.serve.repository import MODEL_NAME, check_traffic, models_in
from forwardpass.serve.settings import Front, LowLoadThreads, ModelSettings, SameAnswer, ServeSettings

__all__ = ["ServeConfig", "describe_config", "name_of", "read_config"]

_Count = Annotated[int, msgspec.Meta(ge=1)]
_Seconds = Annotated[float, msgspec.Meta(gt=0)]
_Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]


class _Defaults(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    variant: str | None = None
    threads: _Count | None = None
    workers: _Count | None = None
    low_load_threads: LowLoadThreads | None = None
    max_batch: _Count | None = None
    max_queue: _Count | None = None
    timeout: _Seconds | None = None
    hang: _Seconds | None = None
    slo: str | None = None
    same_answer: SameAnswer | None = None


class _Model(_Defaults, forbid_unknown_fields=True, kw_only=True):
    path: str
    name: str | None = None
    labels: dict[str, str | int] = {}
    split: dict[str, float] = {}
    shadow: str | int | None = None
    rollback: bool | RollbackBody = True


class _Step(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    model: str
    version: str | int | None = None
    inputs: dict[str, str] = {}
    outputs: dict[str, str] = {}


class _Pipeline(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    name: str
    steps: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)]
    timeout: _Seconds | None = None
    slo: str | None = None
    max_in_flight: _Count | None = None


class _Server(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    host: str | None = None
    port: _Port | None = None
    grpc_port: _Port | None = None
    repository: str | None = None
    watch: _Seconds | None = None
    grace: Annotated[float, msgspec.Meta(ge=0)] | None = None
    keys: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_client_ca: str | None = None
    max_body_bytes: _Count | None = None
    max_header_bytes: _Count | None = None
    max_connections: _Count | None = None
    header_timeout: _Seconds | None = None
    body_timeout: _Seconds | None = None
    keep_alive: _Seconds | None = None
    otlp: str | None = None
    trace_sample: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    front: Front | None = None


_SETTINGS = {
    "threads": "num_threads",
    "workers": "num_workers",
    "max_batch": "max_batch_rows",
    "max_queue": "max_queue_rows",
    "timeout": "timeout_s",
    "hang": "hang_s",
    "watch": "watch_s",
    "grace": "grace_s",
    "tls_cert": "certificate",
    "tls_key": "private_key",
    "tls_client_ca": "client_ca",
    "header_timeout": "header_timeout_s",
    "body_timeout": "body_timeout_s",
    "keep_alive": "keep_alive_s",
}
_PATHS = ("keys", "certificate", "private_key", "client_ca")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """What a server is to do."""

    settings: ServeSettings
    models: tuple[ModelConfig, ...] = ()
    repository: Path | None = None
    pipelines: tuple[PipelineConfig, ...] = ()


def read_config(path: Path, *, overruled: Collection[str] = (), beside: Collection[str] = ()) -> ServeConfig:
    """Read a configuration; paths in it are relative to its folder.

    What the settings that are `overruled` name does not have to be there. `beside` are the names of models that are
    served, too, without being in the file.

    Raises:
        InvalidConfig: it cannot be read, or something in it is wrong; every mistake is named.
    """
    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise InvalidConfig(path=str(path), mistakes=[(error.strerror or str(error)).lower()]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidConfig(path=str(path), mistakes=[f"it is not TOML: {error}"]) from error
    reader = _Reader(path.absolute().parent, overruled, beside)
    config = reader.read(document)
    if reader.mistakes:
        raise InvalidConfig(path=str(path), mistakes=reader.mistakes)
    return config


def name_of(path: Path) -> str:
    """Name a model after its bundle, or a folder of versions after itself.

    Raises:
        BundleError: it is neither.
    """
    return path.absolute().name if has_versions(path) else read_name(path)


def describe_config(config: ServeConfig) -> Iterator[str]:
    """Return what is in force, a line for the server and one for each model; what the profile decides is left out."""
    server = asdict(config.settings)
    del server["model"]
    if config.settings.otlp is None:
        del server["trace_sample"]
    yield "server: " + _listed(server | {"repository": config.repository})
    for model in config.models:
        settings = asdict(model.settings) | {"slo": model.settings.slo}
        has_split = bool(model.traffic.split)
        traffic = {
            name: value for name, value in asdict(model.traffic).items() if value and (name != "rollback" or has_split)
        }
        yield f"{model.name}: " + _listed({"path": model.path} | settings | traffic)
    for pipeline in config.pipelines:
        steps = " → ".join(step.model for step in pipeline.steps)
        limits: dict[str, object] = {
            "timeout_s": pipeline.timeout_s,
            "slo": pipeline.slo,
            "max_in_flight": pipeline.max_in_flight,
        }
        yield f"{pipeline.name}: " + _listed({"steps": steps} | limits)


def _listed(fields: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value}" for name, value in fields.items() if value is not None)


class _Reader:
    """Turns a document into settings and notes every mistake on the way."""

    def __init__(self, folder: Path, overruled: Collection[str], beside: Collection[str]) -> None:
        self._folder = folder
        self._overruled = overruled
        self._models = dict.fromkeys(beside)
        self._has_nameless = False
        """There is a model whose name is not known, so that no name can be said to be missing."""
        self._pipeline_names: list[str] = []
        self._steps: list[tuple[str, str]] = []
        """Where a step of a pipeline stands, and the model that it names."""
        self.mistakes: list[str] = []

    def read(self, document: dict[str, Any]) -> ServeConfig:
        for key in document.keys() - {"server", "defaults", "models", "pipelines"}:
            self.mistakes.append(f"'{key}' {_where_it_belongs(key)}")
        server = self._section(document.get("server", {}), "server", _Server)
        defaults = self._model_settings(self._section(document.get("defaults", {}), "defaults", _Defaults), "defaults")
        fields = {name: value for name, value in server.items() if name != "repository"}
        settings = ServeSettings(model=replace(ModelSettings(), **defaults), **self._renamed(fields))
        self._check_files(server)
        models = self._list(document, "models")
        configs = [self._model(model, f"models[{number}]", settings.model) for number, model in enumerate(models)]
        found = tuple(config for config in configs if config is not None)
        pipelines = tuple(self._pipelines(self._list(document, "pipelines")))
        names = [*(config.name for config in found), *(config.name for config in pipelines)]
        words = "models or pipelines" if pipelines else "models"
        self.mistakes += [f"two {words} are named '{name}'" for name in dict.fromkeys(names) if names.count(name) > 1]
        repository = self._repository(server)
        self._check_steps(repository, pipelines)
        return ServeConfig(settings=settings, models=found, repository=repository, pipelines=pipelines)

    def _repository(self, server: Mapping[str, Any]) -> Path | None:
        if "repository" not in server or "repository" in self._overruled:
            return None
        place = self._place(server["repository"])
        if not place.is_dir():
            self.mistakes.append(f"server.repository: there is no folder '{place}'")
            self._has_nameless = True
        return place

    def _check_steps(self, repository: Path | None, pipelines: Sequence[PipelineConfig]) -> None:
        """Note steps of pipelines that lead nowhere; whether their tensors fit is seen when the models are loaded."""
        found = () if repository is None else models_in(repository)
        for name in (name for name in self._pipeline_names if name in found):
            self.mistakes.append(f"server.repository: it has a model '{name}', which is the name of a pipeline, too")
        there = [*dict.fromkeys((*self._models, *found, *self._pipeline_names))]
        for where, model in self._steps:
            if model not in there and not self._has_nameless:
                listed = ", ".join(there) or "none"
                self.mistakes.append(f"{where}.model: there is no model '{model}'; there are {listed}")
        self.mistakes += tell_cycles(pipelines)

    def _list(self, document: dict[str, Any], key: str) -> list[object]:
        found = document.get(key, [])
        if isinstance(found, list):
            return found
        self.mistakes.append(f"'{key}' has to be written as [[{key}]], once for each")
        return []

    def _pipelines(self, sections: Sequence[object]) -> Iterator[PipelineConfig]:
        for number, section in enumerate(sections):
            where = f"pipelines[{number}]"
            fields = self._complete(section, where, _Pipeline, ("name", "steps"))
            if "name" in fields:
                self._check_name(fields["name"], where)
                self._pipeline_names.append(fields["name"])
            else:
                self._has_nameless = True
            steps = list(self._read_steps(fields.get("steps", ()), f"{where}.steps"))
            limits = self._model_settings({key: fields[key] for key in ("timeout", "slo") if key in fields}, where)
            if "max_in_flight" in fields:
                limits["max_in_flight"] = fields["max_in_flight"]
            if "name" in fields and steps and all("model" in step for step in steps):
                yield PipelineConfig(name=fields["name"], steps=tuple(map(_step, steps)), **limits)

    def _read_steps(self, sections: Sequence[object], where: str) -> Iterator[dict[str, Any]]:
        for at, section in enumerate(sections):
            step = self._complete(section, f"{where}[{at}]", _Step, ("model",))
            if "model" in step:
                self._steps.append((f"{where}[{at}]", step["model"]))
            yield step

    def _complete(
        self, section: object, where: str, kind: type[msgspec.Struct], required: Sequence[str]
    ) -> dict[str, Any]:
        """Return the fields of a section that are right, and note those that are missing."""
        fields = self._section(section, where, kind)
        if isinstance(section, dict):
            self.mistakes += [f"{where}.{name}: is missing" for name in required if name not in section]
        return fields

    def _check_name(self, name: str, where: str) -> None:
        if not MODEL_NAME.fullmatch(name):
            self.mistakes.append(f"{where}.name: '{name}' is no name: letters, digits, '.', '_' and '-', at most 64")

    def _check_files(self, server: Mapping[str, Any]) -> None:
        for name, path in server.items():
            setting = _SETTINGS.get(name, name)
            if setting not in _PATHS or setting in self._overruled:
                continue
            place = self._place(path)
            if not place.is_file():
                self.mistakes.append(f"server.{name}: there is no file '{place}'")
            elif name == "keys":
                self._noting("server.keys", partial(read_keys, place))

    def _check_on_disk(self, config: ModelConfig, where: str) -> None:
        """Note a variant or versions that are named and not there."""
        variant = config.settings.variant
        if variant is not None and "variant" not in self._overruled and is_bundle(config.path):
            self._noting(f"{where}.variant", lambda: check_variant(config.path, variant))
        self._noting(where, lambda: check_traffic(config))

    def _model(self, section: object, where: str, defaults: ModelSettings) -> ModelConfig | None:
        fields = self._complete(section, where, _Model, ("path",))
        if "path" not in fields:
            self._note_model(fields.get("name"))
            return None
        path = self._place(fields.pop("path"))
        shares = {name: fields.pop(name) for name in ("labels", "split", "shadow", "rollback") if name in fields}
        name = fields.pop("name", None)
        if name is not None:
            self._check_name(name, where)
        settings = replace(defaults, **self._model_settings(fields, where))
        name = name or self._noting(where, lambda: name_of(path))
        self._note_model(name)
        traffic = self._noting(where, lambda: TrafficBody(**shares).traffic())
        if name is None or traffic is None:
            return None
        config = ModelConfig(name=name, path=path, settings=settings, traffic=traffic)
        self._check_on_disk(config, where)
        return config

    def _note_model(self, name: str | None) -> None:
        if name is None:
            self._has_nameless = True
        else:
            self._models[name] = None

    def _section(self, section: object, where: str, kind: type[msgspec.Struct]) -> dict[str, Any]:
        """Return the fields that are right, and note what is wrong with the others."""
        if not isinstance(section, dict):
            self.mistakes.append(f"'{where}' has to be a table")
            return {}
        types = get_type_hints(kind, include_extras=True)
        fields = {}
        for key, value in section.items():
            if key not in types:
                meant = get_close_matches(key, types, n=1)
                known = f"did you mean '{meant[0]}'?" if meant else f"there are {', '.join(types)}"
                self.mistakes.append(f"{where}.{key}: is not known; {known}")
                continue
            try:
                fields[key] = msgspec.convert(value, types[key])
            except msgspec.ValidationError as error:
                told = str(error).replace(" | null", "")
                self.mistakes.append(f"{where}.{key}: {told}{_choices(types[key])}")
        return fields

    def _model_settings(self, fields: dict[str, Any], where: str) -> dict[str, Any]:
        renamed = self._renamed(fields)
        if "slo" in renamed:
            text = renamed.pop("slo")
            slo = self._noting(f"{where}.slo", lambda: Slo.parse(text))
            renamed |= {"slo": slo} if slo is not None else {}
        return renamed

    def _renamed(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        renamed = {_SETTINGS.get(name, name): value for name, value in fields.items()}
        return {name: self._place(value) if name in _PATHS else value for name, value in renamed.items()}

    def _place(self, path: str) -> Path:
        return self._folder / path

    def _noting(self, where: str, make: Callable[[], Any]) -> Any:
        try:
            return make()
        except (ForwardpassError, BundleError) as error:
            self.mistakes.append(f"{where}: {error}")
            return None


def _choices(kind: object) -> str:
    """Return what may stand where one of a few words is expected."""
    enums = [one for one in (kind, *get_args(kind)) if isinstance(one, type) and issubclass(one, Enum)]
    return "".join(f"; expected one of {', '.join(choice.value for choice in enum)}" for enum in enums)


def _where_it_belongs(key: str) -> str:
    """Tell somebody who has written a key outside all sections what to do with it."""
    if key in _Server.__struct_fields__:
        return "belongs into the section [server]"
    if key in _Defaults.__struct_fields__:
        return "belongs into [defaults] or a [[models]]"
    if key in ("model", "pipeline"):
        return f"is not known; write [[{key}s]], once for each"
    return "is not known; there are server, defaults, models and pipelines"


def _step(fields: dict[str, Any]) -> StepConfig:
    version = fields.get("version")
    return StepConfig(**fields | {"version": str(version) if version is not None else None})
