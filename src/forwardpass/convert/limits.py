"""How long a dynamic axis may get, for forms whose memory is planned beforehand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from forwardpass.convert.axes import DynamicAxes
from forwardpass.core.samples import Samples
from forwardpass.core.tensors import BATCH_AXIS, Array
from forwardpass.errors import InvalidOption

__all__ = ["axis_limits", "within_limits"]

MAX_ROWS = 32
"""As many as a batch has at most that was never measured."""


def axis_limits(samples: Samples, axes: DynamicAxes, given: Mapping[str, int]) -> dict[str, int]:
    """Return the greatest size of each dynamic axis: as `given`, or else as the samples suggest.

    That is their own greatest size; twice that for an axis which they never vary and the user has named; and 32 rows.

    Raises:
        InvalidOption: an axis is given that is not dynamic, or a size that the samples exceed.
    """
    seen: dict[str, set[int]] = {}
    for tensor, names in axes.items():
        for axis, label in names.items():
            seen.setdefault(label, set()).update(group.inputs[tensor].shape[axis] for group in samples.groups)
    for label, size in given.items():
        least = 2 if label == BATCH_AXIS else max(seen.get(label, {1}))
        if label not in seen or size < least:
            known = f"NAME=SIZE, for one of the dynamic axes {', '.join(seen)}"
            expected = known if label not in seen else f"at least {least}, which the samples need"
            raise InvalidOption(option="--max-size", value=f"{label}={size}", expected=expected)
    chosen = {label: max(sizes) * (2 if len(sizes) == 1 else 1) for label, sizes in seen.items()}
    return {**chosen, BATCH_AXIS: MAX_ROWS, **given}


def within_limits(
    calls: Iterable[dict[str, Array]], axes: DynamicAxes, limits: Mapping[str, int]
) -> Iterator[dict[str, Array]]:
    """Leave out the calls that are longer somewhere."""
    for call in calls:
        if all(
            call[tensor].shape[axis] <= limits[label] for tensor, names in axes.items() for axis, label in names.items()
        ):
            yield call
