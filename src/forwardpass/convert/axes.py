"""Which axes of a model's inputs are dynamic, and what they are called: read off the samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from forwardpass.core.samples import Samples
from forwardpass.core.tensors import BATCH_AXIS
from forwardpass.errors import InvalidOption

__all__ = ["DynamicAxes", "dynamic_axes"]

DynamicAxes: TypeAlias = Mapping[str, Mapping[int, str]]
"""Names of the dynamic axes, by input and axis."""


def dynamic_axes(samples: Samples, named: DynamicAxes | None = None) -> DynamicAxes:
    """Return the batch axis, the axes whose size differs between samples, and those that the user `named`.

    Axes that always have the same size as each other share a name, so that the converted model knows that an
    attention mask is as long as its tokens.

    Raises:
        InvalidOption: an axis is named that no input has.
    """
    _check_named(samples, named or {})
    axes: dict[str, dict[int, str]] = {}
    names_by_sizes: dict[tuple[int, ...], str] = {}
    for name, array in samples.groups[0].inputs.items():
        axes[name] = {0: BATCH_AXIS}
        for axis in range(1, array.ndim):
            sizes = tuple(group.inputs[name].shape[axis] for group in samples.groups)
            if len(set(sizes)) > 1:
                fallback = "sequence" if array.ndim == 2 and array.dtype.kind in "iub" else f"{name}_axis{axis}"
                axes[name][axis] = names_by_sizes.setdefault(sizes, fallback)
        axes[name] |= dict((named or {}).get(name, {}))
    return axes


def _check_named(samples: Samples, named: DynamicAxes) -> None:
    inputs = samples.groups[0].inputs
    for name, axes in named.items():
        for axis, label in axes.items():
            if name not in inputs or not 0 < axis < inputs[name].ndim:
                shapes = ", ".join(f"{tensor} with axes 0 to {array.ndim - 1}" for tensor, array in inputs.items())
                raise InvalidOption(
                    option="--dynamic",
                    value=f"{name}:{axis}={label}",
                    expected=f"an axis behind the batch (axis 0) of one of the inputs: {shapes}",
                )
