"""Samples as users have them: an `.npz` file, a folder of them, or a function that returns arrays.

Arrays have the samples along their first axis and are named after the model's inputs; `labels` is set apart. Samples
of different shapes (sentences, clips) are in several files, one shape each, or in several items of an iterable.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile

from forwardpass.core.references import is_reference, resolve_reference
from forwardpass.core.samples import SampleGroup, Samples, SampleSplits, split_samples
from forwardpass.core.strings import are_strings, as_strings
from forwardpass.core.tensors import Array
from forwardpass.errors import InvalidSamples, SourceNotFound

__all__ = ["LABELS", "load_samples", "load_splits"]

LABELS = "labels"
SPLITS = ("calibration", "validation", "test")


def load_splits(origin: str) -> SampleSplits:
    """Load samples and divide them into calibration, validation and test.

    A folder that has the splits already (`calibration.npz`, `validation.npz`, `test.npz`, or folders of these names)
    keeps them; anything else is split by content, reproducibly.

    Raises:
        SourceNotFound: there is no such file or folder.
        InvalidReference: `origin` is a `package.module:function` that leads nowhere.
        InvalidSamples: the arrays cannot be measured with, or the splits overlap.
    """
    path = Path(origin)
    if is_reference(origin) and not path.exists():
        return split_samples(_from_function(origin), origin=origin)
    if path.is_file():
        return split_samples(Samples(groups=(_read_file(path),)), origin=origin)
    if not path.is_dir():
        raise SourceNotFound(path=origin, expected="an .npz file, a folder of them, or 'package.module:function'")
    members = [_member(path, name) for name in SPLITS]
    given = [member for member in members if member is not None]
    if not given:
        return split_samples(_read_folder(path), origin=origin)
    if len(given) != len(SPLITS):
        raise InvalidSamples(
            origin=origin,
            reason=f"it has only {', '.join(member.name for member in given)}",
            hint=f"Give all of {', '.join(SPLITS)}, or none of them.",
        )
    calibration, validation, test = (_read(member) for member in given)
    splits = SampleSplits(calibration=calibration, validation=validation, test=test)
    splits.check_disjoint(origin=origin)
    return splits


def load_samples(origin: str) -> Samples:
    """Load samples without dividing them, however few; of a folder that has the splits, those of the test.

    Raises:
        SourceNotFound: there is no such file or folder.
        InvalidReference: `origin` is a `package.module:function` that leads nowhere.
        InvalidSamples: the arrays cannot be used.
    """
    path = Path(origin)
    if is_reference(origin) and not path.exists():
        return _from_function(origin)
    if path.is_file():
        return Samples(groups=(_read_file(path),))
    if not path.is_dir():
        raise SourceNotFound(path=origin, expected="an .npz file, a folder of them, or 'package.module:function'")
    return _read(_member(path, SPLITS[-1]) or path)


def _member(folder: Path, split: str) -> Path | None:
    for candidate in (folder / f"{split}.npz", folder / split):
        if candidate.exists():
            return candidate
    return None


def _read(path: Path) -> Samples:
    return _read_folder(path) if path.is_dir() else Samples(groups=(_read_file(path),))


def _read_folder(folder: Path) -> Samples:
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise InvalidSamples(origin=str(folder), reason="it has no .npz file")
    return _joined([_read_file(file) for file in files], origin=str(folder))


def _read_file(path: Path) -> SampleGroup:
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            arrays = {name: archive[name] for name in archive.files} if isinstance(archive, NpzFile) else None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        hint = "Save plain arrays with np.savez; arrays of Python objects are pickles and are not read."
        raise InvalidSamples(origin=str(path), reason="it is not a readable .npz file", hint=hint) from error
    if arrays is None:
        raise InvalidSamples(origin=str(path), reason="it holds one array without a name", hint="Use np.savez.")
    return _group(arrays, origin=str(path))


def _from_function(reference: str) -> Samples:
    function = resolve_reference(reference)
    if not callable(function):
        raise InvalidSamples(origin=reference, reason="it is not a function")
    try:
        returned = function()
    except Exception as error:  # whatever the user's function raises
        raise InvalidSamples(origin=reference, reason=f"it raised {type(error).__name__}: {error}") from error
    items = [returned] if isinstance(returned, Mapping) else returned
    if not isinstance(items, Iterable) or isinstance(items, str | bytes):
        raise InvalidSamples(
            origin=reference,
            reason=f"it returned {type(returned).__name__}",
            hint="Return a mapping of names to arrays, or an iterable of such mappings.",
        )
    return _joined([_checked_mapping(item, origin=reference) for item in items], origin=reference)


def _checked_mapping(item: object, *, origin: str) -> SampleGroup:
    if not isinstance(item, Mapping):
        raise InvalidSamples(origin=origin, reason=f"an item is a {type(item).__name__}, not a mapping of arrays")
    return _group({str(name): np.asarray(value) for name, value in item.items()}, origin=origin)


def _group(arrays: dict[str, Array], *, origin: str) -> SampleGroup:
    """Check the arrays of one file: same number of samples, numbers only, all finite."""
    labels = arrays.pop(LABELS, None)
    if not arrays:
        raise InvalidSamples(origin=origin, reason="it has no input array")
    counts = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"'{name}' has {count}" for name, count in counts.items())
        raise InvalidSamples(origin=origin, reason=f"its arrays have different numbers of samples ({listed})")
    num_samples = next(iter(counts.values()))
    if num_samples == 0:
        raise InvalidSamples(origin=origin, reason="it is empty")
    if labels is not None and (labels.ndim == 0 or len(labels) != num_samples):
        found = len(labels) if labels.ndim else "a single number as"
        raise InvalidSamples(origin=origin, reason=f"it has {num_samples} samples but {found} labels")
    arrays = {name: as_strings(array) if are_strings(array) else array for name, array in arrays.items()}
    for name, array in {**arrays, **({LABELS: labels} if labels is not None else {})}.items():
        _check_values(name, array, origin=origin)
    return SampleGroup(inputs=arrays, labels=labels)


def _check_values(name: str, array: Array, *, origin: str) -> None:
    if name != LABELS and array.dtype.kind == "O" and are_strings(array):
        return
    if array.dtype.kind not in "fiub":
        wanted = "numbers" if name == LABELS else "numbers or strings"
        raise InvalidSamples(origin=origin, reason=f"the array '{name}' has dtype {array.dtype}, not {wanted}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).reshape(len(array), -1).any(axis=1).argmax())
        raise InvalidSamples(
            origin=origin,
            reason=f"the array '{name}' has NaN or infinity, first in sample {bad}",
            hint="Remove or impute these samples; a measurement on them would mean nothing.",
        )


def _joined(groups: list[SampleGroup], *, origin: str) -> Samples:
    """Merge groups of the same shape, and check that all name the same inputs."""
    if not groups:
        raise InvalidSamples(origin=origin, reason="it is empty")
    merged: dict[tuple[tuple[int, ...], ...], list[SampleGroup]] = {}
    for group in groups:
        if group.inputs.keys() != groups[0].inputs.keys() or (group.labels is None) != (groups[0].labels is None):
            raise InvalidSamples(origin=origin, reason="its parts do not all have the same arrays")
        merged.setdefault(_shape(group), []).append(group)
    return Samples(groups=tuple(_concatenated(same) for same in merged.values()))


def _shape(group: SampleGroup) -> tuple[tuple[int, ...], ...]:
    labels = () if group.labels is None else group.labels.shape[1:]
    return (*(array.shape[1:] for array in group.inputs.values()), labels)


def _concatenated(groups: list[SampleGroup]) -> SampleGroup:
    inputs = {name: np.concatenate([group.inputs[name] for group in groups]) for name in groups[0].inputs}
    labels = [group.labels for group in groups if group.labels is not None]
    return SampleGroup(inputs=inputs, labels=np.concatenate(labels) if labels else None)
