"""A PyTorch source: loaded, tried with the samples, and afterwards left as it was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from forwardpass.convert.parity import CONSTANT_SIZE
from forwardpass.convert.values import TorchSource
from forwardpass.core.samples import Samples
from forwardpass.core.tensors import Array
from forwardpass.errors import ExportFailed, InvalidModel, InvalidSamples
from forwardpass.runtimes import RuntimeOptions

if TYPE_CHECKING:
    from torch import nn

    from forwardpass.runtimes.torch import TorchRuntime

__all__ = ["example_call", "fitting_samples", "open_source", "source_left_as_found"]

USUAL_BATCHES = (1, 4, 8, 16, 32, 64)
"""What batches are frozen at, the one that users forget before those of trainings."""


@contextmanager
def source_left_as_found(source: TorchSource | nn.Module | Path) -> Iterator[None]:
    """Afterwards, give torch its threads back, and a module of the user's its mode."""
    if isinstance(source, Path):
        yield
        return
    from forwardpass.runtimes.torch import left_as_found

    with left_as_found(None if isinstance(source, TorchSource) else source):
        yield


def open_source(source: TorchSource | nn.Module) -> TorchRuntime:
    """Load a PyTorch source."""
    from forwardpass.runtimes.torch import TorchRuntime

    if not isinstance(source, TorchSource):
        return TorchRuntime(source, options=RuntimeOptions())
    return TorchRuntime.from_reference(source.reference, weights=source.weights, options=RuntimeOptions())


def fitting_samples(runtime: TorchRuntime, samples: Samples | None, name: str) -> Samples:
    """Check the names of the samples against `forward`, in the order of whose arguments they are given."""
    from forwardpass.runtimes.torch import input_names

    if samples is None:
        hint = "Give some with --data samples.npz, an array named after each argument of forward()."
        raise InvalidSamples(origin=name, reason="a PyTorch source cannot be traced without inputs", hint=hint)
    arguments = input_names(runtime.module)
    unknown = [tensor for tensor in samples.groups[0].inputs if tensor not in arguments]
    if unknown:
        raise InvalidSamples(
            origin=name,
            reason=f"they have an array '{unknown[0]}', but forward() takes {', '.join(arguments)}",
            hint="Name the arrays after the arguments of forward(); 'labels' is set apart.",
        )
    _check_runs(runtime, example_call(samples), name)
    return samples


def _check_runs(runtime: TorchRuntime, example: dict[str, Array], name: str) -> None:
    """Run two samples through the source: what fails here is about the samples, not about the conversion."""
    try:
        runtime.run(example)
    except InvalidModel:
        raise
    except Exception as error:  # whatever the user's forward() raises
        from forwardpass.convert.exporters import user_line

        given = ", ".join(f"{tensor} {array.dtype}{list(array.shape)}" for tensor, array in example.items())
        first = next((line for line in str(error).splitlines() if line.strip()), "no message")
        line = user_line(error)
        reason = f"forward() raised {type(error).__name__}{f' at {line}' if line else ''} for {given}: {first[:200]}"
        frozen = _frozen_batch(runtime, example)
        if frozen:
            reason = f"its batch is frozen at {frozen}: {reason}"
            raise ExportFailed(source=name, reason=reason, hint=CONSTANT_SIZE) from error
        hint = "Give the arrays the dtypes and shapes that forward() expects."
        raise InvalidSamples(origin=name, reason=reason, hint=hint) from error


def _frozen_batch(runtime: TorchRuntime, example: dict[str, Array]) -> int:
    """Return the number of rows that the source runs with although it does not run with two; 0 if none is found."""
    for num_rows in USUAL_BATCHES:
        rows = np.arange(num_rows) % 2
        with suppress(Exception):  # the call of two rows has failed already; this tells only why
            runtime.run({tensor: np.ascontiguousarray(array[rows]) for tensor, array in example.items()})
            return num_rows
    return 0


def example_call(samples: Samples) -> dict[str, Array]:
    """Return two rows of a middle shape: a batch of one, or an axis of one, would be taken for a constant."""
    ordered = sorted(samples.groups, key=lambda group: sum(array[0].size for array in group.inputs.values()))
    group = ordered[len(ordered) // 2]
    rows = np.arange(2) % len(group)
    return {name: np.ascontiguousarray(array[rows]) for name, array in group.inputs.items()}
