"""A bundle in use: loaded into this process, inspected, or served."""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forwardpass.bundle import Bundle, check_variant, is_bundle, open_bundle
from forwardpass.core.calls import random_calls, random_tensors
from forwardpass.core.tensors import BATCH_AXIS
from forwardpass.core.variants import Precision, Variant
from forwardpass.errors import ForwardpassError, InvalidOption
from forwardpass.predict import (
    GoldenCheck,
    PackingList,
    Predictor,
    SameAnswer,
    VariantToPack,
    pack_bundle,
    verify_variant,
)
from forwardpass.runtimes import RuntimeOptions, format_of, open_runtime
from forwardpass.wiring.inputs import bundled_variants, no_progress

if TYPE_CHECKING:
    from forwardpass.serve import ModelConfig, ModelSettings, ServeConfig, Server, ServeSettings

__all__ = ["Inspection", "inspect_bundle", "load", "run_server", "serve_model"]

NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]")
NUM_QUICK_ROWS = 4
QUICK_AUDIT_S = 1.0
"""For a bare model file: how much of the start is spent on finding out whether its rows interfere."""


def load(
    bundle: Path | str,
    *,
    variant: str | None = None,
    num_threads: int = 1,
    same_answer: SameAnswer = SameAnswer.AFFORDABLE,
) -> Predictor:
    """Open a bundle for use in this process, without a server, with the same checks and answers.

    With as many threads and the same `same_answer`, a server answers the same to the last bit, where the variant can
    do that in batches of some sizes.

    >>> import forwardpass, numpy as np
    >>> model = forwardpass.load("shop-bundle")
    >>> model.predict({"pixels": np.zeros((2, 64), np.float32)})["scores"].shape
    (2, 10)
    >>> forwardpass.load("minilm-bundle").ask(text="the cat sleeps")["embeddings"]
    [[48.0, 51.0, 54.0, 57.0]]

    Raises:
        BundleError: the bundle cannot be trusted.
        GoldenMismatch: it answers differently on this machine.
    """
    return Predictor.open(bundle, variant=variant, num_threads=num_threads, same_answer=same_answer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """A bundle whose files are whole, and how far its variants are from their golden answers on this machine."""

    bundle: Bundle
    golden: tuple[GoldenCheck, ...]


def inspect_bundle(bundle: Path | str) -> Inspection:
    """Check every file of a bundle and re-run the golden answers of every variant.

    >>> import forwardpass
    >>> [check.variant for check in forwardpass.inspect_bundle("shop-bundle").golden]
    ['onnx-fp32']

    Raises:
        BundleError: a file is missing, altered or undeclared.
        GoldenMismatch: a variant answers differently on this machine.
    """
    opened = open_bundle(bundle)
    checks = tuple(verify_variant(opened, item.name) for item in opened.manifest.variants)
    return Inspection(bundle=opened, golden=checks)


def serve_model(
    *models: Path | str, settings: ServeSettings | None = None, repository: Path | str | None = None
) -> None:
    """Serve bundles, folders of their versions, or bare model files, until SIGTERM, SIGINT, SIGHUP or SIGQUIT.

    A folder whose subfolders 1, 2, 3 … are bundles serves the newest; `repository` is a folder of such folders, whose
    models can be loaded and unloaded while the server runs. A model file becomes a temporary bundle named after it; it
    is audited before it serves, and profiled in the background while it does.

    Raises:
        BundleError: a bundle cannot be trusted.
        ModelNotServed: a variant cannot be loaded, or answers differently on this machine.
        AddressInUse: the port is taken.
    """
    from forwardpass.serve import ServeConfig, ServeSettings

    config = ServeConfig(settings=settings or ServeSettings(), repository=Path(repository) if repository else None)
    _serve(models, config)


def run_server(models: Sequence[Path | str], *, config: Path | None, repository: Path | None, **given: Any) -> None:
    """Serve what a configuration file and the command line name; `given` settings overrule those of the file.

    Raises:
        InvalidConfig: the file has mistakes.
        ForwardpassError: as for `serve_model`.
    """
    from forwardpass.serve import ModelSettings, ServeConfig, ServeSettings, models_in, read_config

    read = ServeConfig(settings=ServeSettings())
    if config is not None:
        overruled = {*given} if repository is None else {*given, "repository"}
        beside = [_name_of(Path(model)) for model in models]
        read = read_config(
            config, overruled=overruled, beside=[*beside, *(models_in(repository) if repository else ())]
        )
    names = {field.name for field in fields(ModelSettings)}
    for_models = {name: value for name, value in given.items() if name in names}
    for_server = {name: value for name, value in given.items() if name not in names}
    settings = replace(read.settings, model=replace(read.settings.model, **for_models), **for_server)
    configs = tuple(replace(model, settings=replace(model.settings, **for_models)) for model in read.models)
    whole = replace(read, settings=settings, models=configs, repository=repository or read.repository)
    _serve(models, whole)


def _serve(models: Sequence[Path | str], config: ServeConfig) -> None:
    from forwardpass.serve import serve

    if config.repository is not None and not config.repository.is_dir():
        raise InvalidOption(option="--repository", value=str(config.repository), expected="a folder of models")
    for settings in (model for model in models if Path(model).suffix == ".toml"):
        expected = "a bundle, a folder of versions or a model file; a configuration is given with --config"
        raise InvalidOption(option="BUNDLE", value=str(settings), expected=expected)
    if not (models or config.models or config.repository):
        raise InvalidOption(option="BUNDLE", value="", expected="at least one bundle, --repository or --config")
    with _ending_in_order(), contextlib.ExitStack() as leaving:
        folder = _temporary_folder(leaving) if any(Path(model).is_file() for model in models) else None
        quick: dict[str, Path] = {}
        configs = list(config.models)
        for number, model in enumerate(map(Path, models)):
            path = model
            if folder is not None and model.is_file():
                path = folder / str(number) / "bundle"
                quick[_quick_bundle(model, path).name] = path
            configs.append(_config(path, config.settings.model))
        _check_names(configs)
        _check_variants(configs)

        def on_ready(server: Server) -> None:
            for name, path in quick.items():
                _profile_in_background(server, name, open_bundle(path))

        serve(replace(config, models=tuple(configs)), on_ready=on_ready, before_exit=leaving.close)


def _temporary_folder(leaving: contextlib.ExitStack) -> Path:
    """Make a folder that `leaving` removes; that is promised before it is made, so that no signal falls in between."""
    folder = Path(tempfile.gettempdir()) / f"forwardpass-serve-{secrets.token_hex(8)}"
    leaving.callback(shutil.rmtree, folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    return folder


@contextlib.contextmanager
def _ending_in_order() -> Iterator[None]:
    """Let signals end the program by an exception, so that what is temporary goes; the server has its own way.

    Those that follow are ignored: they would end it in the midst of that.
    """
    from forwardpass.serve import ending_signals

    before = {number: signal.getsignal(number) for number in ending_signals()}

    def end(number: int, _: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(0)

    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _config(path: Path, settings: ModelSettings) -> ModelConfig:
    from forwardpass.serve import ModelConfig, name_of

    return ModelConfig(name=name_of(path), path=path, settings=settings)


def _name_of(model: Path) -> str:
    """Return what a model of the command line is called: a bundle, a folder of versions, or a file."""
    from forwardpass.serve import name_of

    return _quick_name(model) if model.is_file() else name_of(model)


def _quick_name(model: Path) -> str:
    return NOT_IN_NAMES.sub("-", model.stem)[:64]


def _check_names(configs: Sequence[ModelConfig]) -> None:
    names = [config.name for config in configs]
    for name in names:
        if names.count(name) > 1:
            paths = ", ".join(str(config.path) for config in configs if config.name == name)
            expected = "models of different names; versions of one model go into folders 1, 2, … of one folder"
            raise InvalidOption(option="BUNDLE", value=paths, expected=expected)


def _check_variants(configs: Sequence[ModelConfig]) -> None:
    """Refuse a variant that is not there before the server tells what it loads; versions are checked when loaded."""
    for config in configs:
        if config.settings.variant is not None and is_bundle(config.path):
            check_variant(config.path, config.settings.variant)


def _quick_bundle(model: Path, destination: Path) -> Bundle:
    """Pack a bare model file with made-up golden inputs, after a short audit of whether its rows interfere."""
    from forwardpass.profile import audit_invariance, describe_machine

    variant = Variant(name="as-is", format=format_of(model), precision=Precision.FP32, location=str(model))
    runtime = open_runtime(variant.format, variant.location, options=RuntimeOptions())
    signature = runtime.signature
    sizes = {BATCH_AXIS: NUM_QUICK_ROWS} if signature.is_batchable else {}
    call = random_tensors(signature, sizes)
    audit = audit_invariance(runtime, [call], budget_s=QUICK_AUDIT_S)
    packing = PackingList(
        name=_quick_name(model),
        variants=[VariantToPack(variant=variant, invariance=audit.verdict, exact_batch_sizes=audit.exact_batch_sizes)],
        golden_inputs=[call],
        machine=describe_machine(),
    )
    return pack_bundle(destination, packing)


def _profile_in_background(server: Server, name: str, bundle: Bundle) -> None:
    """Measure the variant in a process of its own while the server works, and let it batch accordingly."""
    from forwardpass.profile import ProfileSettings, profile_variants

    loop = asyncio.get_running_loop()
    variant = bundled_variants(bundle)[0]
    settings = replace(ProfileSettings.quick(), thread_counts=(server.num_threads(name),), num_cold_starts=2)

    def measure() -> None:
        calls = random_calls(bundle.signature, settings.batch_sizes, {})
        with contextlib.suppress(ForwardpassError, RuntimeError, OSError):  # the server may have stopped meanwhile
            (profile,) = profile_variants(
                [variant], calls, settings=settings, progress=no_progress, scratch=bundle.path.parent
            )
            loop.call_soon_threadsafe(server.learn_table, name, profile.latency_tables()[0])

    threading.Thread(target=measure, name="background-profile", daemon=True).start()
