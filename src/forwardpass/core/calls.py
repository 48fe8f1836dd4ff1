"""Inputs to measure with: a few calls for each batch size, from real samples or, without any, made up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from forwardpass.core.samples import SampleGroup, Samples
from forwardpass.core.strings import strings_array
from forwardpass.core.tensors import BATCH_AXIS, Array, Signature, TensorSpec

__all__ = ["CallSets", "calls_from_samples", "random_calls", "random_tensors"]

CallSets: TypeAlias = Mapping[int, tuple[dict[str, Array], ...]]
"""The calls to cycle through, by batch size."""

CALLS_PER_BATCH_SIZE = 16
"""Enough to show how latency varies with the length of real inputs, few enough to stay in the cache of a round."""
DEFAULT_AXIS_SIZE = 16
SEED = 20261101
WORDS = (b"hello", b"good morning", b"a longer text of several words", b"42", "caf\u00e9".encode())
"""Made-up strings of different lengths."""


def calls_from_samples(samples: Samples, batch_sizes: Sequence[int]) -> CallSets:
    """Build calls from real samples; every call has one shape, and the shapes appear as often as in the samples."""
    generator = np.random.default_rng(SEED)
    weights = np.array([len(group) for group in samples.groups], dtype=np.float64)
    draws = generator.choice(len(samples.groups), size=CALLS_PER_BATCH_SIZE, p=weights / weights.sum())
    groups = [samples.groups[draw] for draw in draws]
    return {size: tuple(_stack(group, size, generator) for group in groups) for size in batch_sizes}


def random_calls(signature: Signature, batch_sizes: Sequence[int], axis_sizes: Mapping[str, int]) -> CallSets:
    """Make up calls for a model without samples; `axis_sizes` gives the sizes of its other dynamic axes."""
    return {
        size: (random_tensors(signature, {**axis_sizes, BATCH_AXIS: size}),)
        for size in (batch_sizes if signature.is_batchable else (1,))
    }


def random_tensors(signature: Signature, axis_sizes: Mapping[str, int]) -> dict[str, Array]:
    """Make up one call: normal numbers, words for strings, ones for all else (valid as ids and as masks)."""
    generator = np.random.default_rng(SEED)
    return {spec.name: _random_array(spec, axis_sizes, generator) for spec in signature.inputs}


def _random_array(spec: TensorSpec, axis_sizes: Mapping[str, int], generator: np.random.Generator) -> Array:
    shape = [dim if isinstance(dim, int) else axis_sizes.get(dim, DEFAULT_AXIS_SIZE) for dim in spec.shape]
    if np.dtype(spec.dtype).kind == "f":
        return generator.standard_normal(shape).astype(spec.dtype)
    if spec.dtype == "object":
        return strings_array([WORDS[pick] for pick in generator.integers(len(WORDS), size=math.prod(shape))], shape)
    return np.ones(shape, dtype=spec.dtype)


def _stack(group: SampleGroup, num_rows: int, generator: np.random.Generator) -> dict[str, Array]:
    """Take `num_rows` samples of one shape, again from the start where the group has fewer."""
    rows = (generator.integers(len(group)) + np.arange(num_rows)) % len(group)
    return {name: np.ascontiguousarray(array[rows]) for name, array in group.inputs.items()}
