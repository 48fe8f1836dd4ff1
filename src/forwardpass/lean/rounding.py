"""Rounding during training, as INT8 static rounds later: what quantisation-aware training trains with.

The layers are those that the writer quantises, and so are the numbers: weights in 8 bits with a sign and a scale for
each output channel, activations in 8 bits without a sign, one range for a tensor. Gradients pass as if nothing were
rounded, where nothing is cut off (Jacob et al., 2018).
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.hooks import RemovableHandle

from forwardpass.core.samples import Samples
from forwardpass.errors import NothingToQuantise
from forwardpass.lean.counting import call, operator_by_operator
from forwardpass.runtimes.torch import left_as_found

__all__ = ["RoundedCopy", "check_something_rounds", "round_copy"]

MAX_ROWS = 32
SHARE_OF_NEW_RANGE = 0.1
"""How fast ranges follow the weights: after ten steps of training, two thirds of a range are new."""
MIN_SCALE = 1e-8
_BYTE = 255
_KERNELS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_Normalisation = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoundedCopy:
    """A copy of a module that rounds, to be trained in place."""

    module: nn.Module
    names: tuple[str, ...]
    """Of the layers that round."""
    hooks: tuple[RemovableHandle, ...]
    """What lets them round their activations."""

    def as_trained(self) -> nn.Module:
        """Return the copy without the rounding, with the weights in float that it was trained to."""
        for name in self.names:
            layer = self.module.get_submodule(name)
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
            del layer.given, layer.answered
        for hook in self.hooks:
            hook.remove()
        for part in self.module.modules():
            vars(part).pop("train", None)
        return self.module.eval()


def round_copy(module: nn.Module, samples: Samples, *, num_weight_bits: int) -> RoundedCopy:
    """Return a copy whose linear layers and convolutions round, with ranges that the samples have shown.

    The module itself stays as it is.
    Batch normalisation is folded into the convolution before it, as the runtime does, or keeps its statistics.

    Raises:
        NothingToQuantise: there is no such layer.
    """
    with left_as_found(module):
        copied = _with_folded_normalisation(module.eval())
    check_something_rounds(copied)
    names = tuple(name for name, part in copied.named_modules() if _is_rounded(part))
    hooks = [hook for name in names for hook in _attach(copied.get_submodule(name), num_weight_bits)]
    for part in copied.modules():
        if isinstance(part, _Normalisation):
            part.eval()
            part.train = lambda _mode=True, part=part: part  # type: ignore[method-assign, misc]
    _observe(copied, samples)
    return RoundedCopy(module=copied, names=names, hooks=tuple(hooks))


def check_something_rounds(module: nn.Module) -> None:
    """Raise `NothingToQuantise` for a module without a layer that would round."""
    if not any(map(_is_rounded, module.modules())):
        raise NothingToQuantise(operators=("nn.Linear", "nn.Conv"))


class _RoundedWeights(nn.Module):
    """Rounds weights to signed integers, symmetric, with a scale for each output channel (the first axis)."""

    def __init__(self, num_bits: int) -> None:
        super().__init__()
        self.limit = 2 ** (num_bits - 1) - 1

    def forward(self, weight: Tensor) -> Tensor:
        greatest = weight.detach().abs().flatten(1).amax(1)
        scale = (greatest / self.limit).clamp_min(MIN_SCALE)
        zero = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -self.limit, self.limit)


class _RoundedActivation(nn.Module):
    """Rounds a tensor to unsigned bytes over a range that follows what passes while it is trained."""

    low: Tensor
    high: Tensor
    is_known: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.register_buffer("is_known", torch.zeros((), dtype=torch.bool))

    def observe(self, tensor: Tensor) -> None:
        """Widen the range to what is there."""
        low, high = tensor.detach().aminmax()
        self.low.copy_(torch.minimum(self.low, low))
        self.high.copy_(torch.maximum(self.high, high))

    def forward(self, tensor: Tensor) -> Tensor:
        if not self.is_known:
            self.observe(tensor)
            return tensor
        if self.training:
            low, high = tensor.detach().aminmax()
            self.low.lerp_(low.clamp_max(0.0), SHARE_OF_NEW_RANGE)
            self.high.lerp_(high.clamp_min(0.0), SHARE_OF_NEW_RANGE)
        scale = ((self.high - self.low) / _BYTE).clamp_min(MIN_SCALE)
        zero = torch.round(-self.low / scale).clamp(0, _BYTE).to(torch.int32)
        return torch.fake_quantize_per_tensor_affine(tensor, scale, zero, 0, _BYTE)


def _is_rounded(part: nn.Module) -> bool:
    """Tell whether the writer would quantise a layer: no depthwise kernels, and no parts of fused attention."""
    if type(part) in _KERNELS:
        return not (part.groups > 1 and part.weight.shape[1] == 1)  # type: ignore[operator, index]
    return type(part) is nn.Linear


def _attach(layer: nn.Module, num_weight_bits: int) -> Iterator[RemovableHandle]:
    """Let a layer round what it is given, its weights and, as a convolution is fused with it, its output."""
    parametrize.register_parametrization(layer, "weight", _RoundedWeights(num_weight_bits), unsafe=True)
    layer.given, layer.answered = _RoundedActivation(), _RoundedActivation()
    yield layer.register_forward_pre_hook(lambda layer, inputs: (layer.given(inputs[0]), *inputs[1:]))
    if isinstance(layer, _KERNELS):
        yield layer.register_forward_hook(lambda layer, _inputs, output: layer.answered(output))


def _observe(module: nn.Module, samples: Samples) -> None:
    """Show the samples to all ranges, then fix them as the place where training starts."""
    module.eval()
    with operator_by_operator():
        for group in samples.batches(MAX_ROWS):
            call(module, group.inputs)
    for part in _activations(module):
        part.is_known.fill_(True)


def _activations(module: nn.Module) -> Iterator[_RoundedActivation]:
    return (part for part in module.modules() if isinstance(part, _RoundedActivation))


def _with_folded_normalisation(module: nn.Module) -> nn.Module:
    """Return a copy whose convolutions hold the normalisation behind them; a module that fx cannot trace keeps it."""
    copied = copy.deepcopy(module)
    if not any(isinstance(part, _Normalisation) for part in copied.modules()):
        return copied
    try:
        nodes = list(torch.fx.symbolic_trace(copied).graph.nodes)
    except Exception:  # fx raises whatever the module does with what is no tensor
        return copied
    uses = Counter(node.target for node in nodes if node.op == "call_module")
    for node in nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, torch.fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        kernels, normalisation = (copied.get_submodule(str(it.target)) for it in (before, node))
        if not (isinstance(kernels, _KERNELS) and isinstance(normalisation, _Normalisation)):
            continue
        if uses[before.target] == uses[node.target] == 1 and normalisation.running_mean is not None:
            copied.set_submodule(str(before.target), fuse_conv_bn_eval(kernels, normalisation))
            copied.set_submodule(str(node.target), nn.Identity())
    return copied
