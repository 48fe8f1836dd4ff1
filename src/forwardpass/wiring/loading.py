"""A server under load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from forwardpass.core.protocols import Progress
from forwardpass.core.samples import Samples
from forwardpass.core.slo import Slo
from forwardpass.samples import load_samples
from forwardpass.wiring.inputs import no_progress

if TYPE_CHECKING:
    from forwardpass.loadtest import LoadResult, LoadSettings, TargetSettings

__all__ = ["find_capacity", "load_test"]


def load_test(
    target: TargetSettings | str, *, settings: LoadSettings | None = None, progress: Progress = no_progress
) -> LoadResult:
    """Load a server that is running and say how it did; without settings, one request after another for 10 s.

    `target` is the address of an Open Inference Protocol server, or `TargetSettings` for everything else.

    Raises:
        ServerUnreachable: nobody listens there.
        ServerFailed: the server does not answer a request as expected.
        InvalidOption: settings do not fit each other or the server.
        InvalidSamples: the samples do not fit the model.
    """
    from forwardpass.loadtest import LoadSettings, run_load
    from forwardpass.profile import describe_machine

    chosen = _target(target)
    return run_load(
        chosen,
        settings or LoadSettings(),
        samples=_samples(chosen),
        machine=describe_machine(),
        progress=progress,
    )


def find_capacity(
    target: TargetSettings | str,
    slo: Slo | str,
    *,
    settings: LoadSettings | None = None,
    budget_s: float = 120.0,
    with_goodput: bool = True,
    progress: Progress = no_progress,
) -> LoadResult:
    """Find the largest Poisson rate at which enough of the offered requests succeed within the limit of `slo`.

    With `p99=100ms`, 99 % of all that are offered have to be answered within 100 ms of the time at which they were due;
    refusals, errors and late answers are failures. `with_goodput` then offers 0.5, 0.8, 1.2 and 2 times that rate.

    Raises:
        ServerUnreachable: nobody listens there.
        ServerFailed: the server does not answer a request as expected.
        InvalidOption: settings do not fit each other or the server.
        InvalidSamples: the samples do not fit the model.
    """
    from forwardpass.loadtest import LoadSettings
    from forwardpass.loadtest import find_capacity as find
    from forwardpass.profile import describe_machine

    chosen = _target(target)
    return find(
        chosen,
        settings or LoadSettings(),
        Slo.parse(slo) if isinstance(slo, str) else slo,
        budget_s=budget_s,
        with_goodput=with_goodput,
        samples=_samples(chosen),
        machine=describe_machine(),
        progress=progress,
    )


def _target(target: TargetSettings | str) -> TargetSettings:
    from forwardpass.loadtest import TargetSettings

    return TargetSettings(url=target) if isinstance(target, str) else target


def _samples(target: TargetSettings) -> Samples | None:
    return load_samples(str(Path(target.data))) if target.data is not None else None
