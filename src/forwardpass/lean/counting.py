"""Multiply-adds, counted from what a call really runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from forwardpass.core.samples import SampleGroup, Samples
from forwardpass.core.tensors import Array

__all__ = ["call", "count_multiply_adds", "example_of", "given", "operator_by_operator"]


def count_multiply_adds(module: nn.Module, example: Mapping[str, Array]) -> int:
    """Return the multiply-adds of matrix products, convolutions and attention for one row of the example."""
    one_row = {name: array[:1] for name, array in example.items()}
    with operator_by_operator(), FlopCounterMode(display=False) as counter:
        call(module, one_row)
    return counter.get_total_flops() // 2


def call(module: nn.Module, tensors: Mapping[str, Array]) -> object:
    """Run a module on arrays, without gradients."""
    with torch.no_grad():
        return module(**given(tensors))


def given(tensors: Mapping[str, Array]) -> dict[str, torch.Tensor]:
    """Return arrays as tensors of their own."""
    return {name: torch.tensor(array) for name, array in tensors.items()}


def example_of(samples: Samples) -> dict[str, Array]:
    """Return up to two rows of the group of the middle size."""
    groups: list[SampleGroup] = sorted(
        samples.groups, key=lambda group: sum(array[0].size for array in group.inputs.values())
    )
    return dict(groups[len(groups) // 2].take(slice(0, 2)).inputs)


@contextmanager
def operator_by_operator() -> Iterator[None]:
    """Keep encoder layers from running as one fused operator, which nobody counts or can follow."""
    was_fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_fused)
