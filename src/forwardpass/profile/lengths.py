"""Rows of one length padded to another: which axis that is, and how a row is cut, padded and its answer cut again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from forwardpass.core.tensors import BATCH_AXIS, Array, Signature, Tensors, TensorSpec

__all__ = ["LengthAxis", "crop_answer", "crop_call", "find_length_axis", "mask_after_first", "pad_call"]

MASK = "mask"


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthAxis:
    """The dynamic axis along which an attention mask says what is content and what is padding."""

    mask: str
    axis: str


def find_length_axis(signature: Signature) -> LengthAxis | None:
    """Return the axis of an input `…mask… [batch, axis]` whose size is dynamic, or None.

    >>> mask = TensorSpec(name="attention_mask", dtype="int64", shape=("batch", "sequence"))
    >>> find_length_axis(Signature(inputs=(mask,), outputs=(mask,)))
    LengthAxis(mask='attention_mask', axis='sequence')
    """
    for spec in signature.inputs:
        if MASK in spec.name.lower() and len(spec.shape) == 2 and spec.shape[0] == BATCH_AXIS:
            axis = spec.shape[1]
            if isinstance(axis, str):
                return LengthAxis(mask=spec.name, axis=axis)
    return None


def crop_call(call: Tensors, signature: Signature, axis: str, length: int) -> dict[str, Array]:
    """Keep the first `length` positions of every input along `axis`."""
    cropped = {}
    for spec in signature.inputs:
        keep = tuple(slice(length) if dim == axis else slice(None) for dim in spec.shape)
        cropped[spec.name] = np.ascontiguousarray(call[spec.name][keep])
    return cropped


def pad_call(call: Tensors, signature: Signature, axis: str, length: int) -> dict[str, Array]:
    """Add zeros to every input along `axis`, the mask among them, up to `length` positions."""
    return {spec.name: _pad(call[spec.name], spec, axis, length) for spec in signature.inputs}


def crop_answer(answer: Tensors, alone: Tensors) -> dict[str, Array]:
    """Cut every output to its size in `alone`: what lies beyond answers the padding."""
    return {
        name: np.ascontiguousarray(answer[name][tuple(slice(size) for size in array.shape)])
        for name, array in alone.items()
    }


def mask_after_first(mask: Array) -> Array:
    """Return masks that leave their first position alone and hide the rest."""
    hidden = np.zeros_like(mask)
    hidden[:, 0] = 1
    return hidden


def _pad(array: Array, spec: TensorSpec, axis: str, length: int) -> Array:
    missing = [(0, length - size if dim == axis else 0) for dim, size in zip(spec.shape, array.shape, strict=True)]
    return np.pad(array, missing, constant_values=b"" if array.dtype.kind == "O" else 0)
