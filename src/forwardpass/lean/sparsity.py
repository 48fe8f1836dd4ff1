"""Unstructured pruning: the smallest weights become zero. It makes a file that compresses well, not a faster one."""

from __future__ import annotations

import copy
import zlib
from dataclasses import dataclass

import torch
from torch import nn

from forwardpass.errors import CannotPrune
from forwardpass.lean.values import SparsitySettings

__all__ = ["Zeroing", "zero_weights"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Zeroing:
    """The copy with zeros, and the bytes of its weights compressed by zlib before and after."""

    module: nn.Module
    share: float
    """Of the weights of matrices and kernels; biases and normalisation are not touched."""
    compressed_bytes_before: int
    compressed_bytes: int


def zero_weights(module: nn.Module, settings: SparsitySettings) -> Zeroing:
    """Return a copy whose smallest weights are zero; the module itself stays as it is.

    Raises:
        CannotPrune: there are no matrices or kernels.
    """
    sparse = copy.deepcopy(module)
    weights = [it for it in sparse.parameters() if it.ndim >= 2 and it.is_floating_point()]
    if not weights:
        raise CannotPrune(model=type(module).__name__, reason="it has no weights of two or more axes")
    with torch.no_grad():
        if settings.per_layer:
            for weight in weights:
                _zero_smallest([weight], settings.share)
        else:
            _zero_smallest(weights, settings.share)
    num_zeros = sum(int((weight == 0).sum()) for weight in weights)
    return Zeroing(
        module=sparse,
        share=num_zeros / sum(weight.numel() for weight in weights),
        compressed_bytes_before=_compressed_bytes(module),
        compressed_bytes=_compressed_bytes(sparse),
    )


def mask_zeros(module: nn.Module) -> None:
    """Keep the zeros of a module zero while it is trained, by undoing what a step does to their gradients."""
    for weight in module.parameters():
        if weight.ndim >= 2:
            mask = (weight != 0).to(weight.dtype)
            weight.register_hook(lambda gradient, mask=mask: gradient * mask)  # type: ignore[no-untyped-call]


def _zero_smallest(weights: list[nn.Parameter], share: float) -> None:
    sizes = torch.cat([weight.abs().reshape(-1) for weight in weights])
    order = torch.argsort(sizes, stable=True)[: round(share * len(sizes))]
    keep = torch.ones(len(sizes), dtype=torch.bool)
    keep[order] = False
    parts = torch.split(keep, [weight.numel() for weight in weights])
    for weight, part in zip(weights, parts, strict=True):
        weight.mul_(part.view(weight.shape))


def _compressed_bytes(module: nn.Module) -> int:
    tensors = [tensor.contiguous().reshape(-1) for tensor in module.state_dict().values()]
    return sum(
        len(zlib.compress(tensor.view(torch.uint8).numpy().tobytes(), 6)) for tensor in tensors if tensor.numel()
    )
