"""The adapter to torch-pruning: which channels belong together, and their removal. Nothing else knows that library."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from forwardpass.core.tensors import Array
from forwardpass.errors import CannotPrune, MissingExtra
from forwardpass.lean.counting import call, given, operator_by_operator
from forwardpass.runtimes.torch import named_outputs

try:
    import torch_pruning
except ImportError as error:
    raise MissingExtra(package="torch-pruning", extra="prune", purpose="pruning channels") from error

__all__ = ["ChannelGroup", "channel_groups", "without_channels"]

ROOTS = (nn.modules.conv._ConvNd, nn.Linear)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelGroup:
    """Output channels of the layer `name`, with everything that has to shrink together with them."""

    name: str
    num_channels: int


def channel_groups(module: nn.Module, example: Mapping[str, Array]) -> tuple[ChannelGroup, ...]:
    """Return all groups of channels of a module, in the order of its layers.

    Raises:
        CannotPrune: the module cannot be traced.
    """
    names = {layer: name for name, layer in module.named_modules()}
    with _traced(module, example) as graph:
        found = [
            (group[0].dep.target.module, len(group[0].idxs)) for group in graph.get_all_groups(root_module_types=ROOTS)
        ]
    order = list(names.values())
    groups = [ChannelGroup(name=names[layer], num_channels=size) for layer, size in found if layer in names]
    return tuple(sorted(groups, key=lambda group: order.index(group.name)))


def without_channels(
    module: nn.Module, name: str, num_channels: int, example: Mapping[str, Array]
) -> tuple[nn.Module, str]:
    """Return a copy whose layer `name` has its `num_channels` weightiest channels left, or the module as it is and why.

    The copy has run on the example, and its outputs have the shapes that they had.
    """
    pruned = copy.deepcopy(module)
    try:
        with _traced(pruned, example) as graph:
            layer = pruned.get_submodule(name)
            prune = graph.get_pruner_of_module(layer).prune_out_channels
            every = graph.get_pruning_group(layer, prune, list(range(graph.get_out_channels(layer))))
            importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)(every)
            least = torch.argsort(importance, stable=True)[: len(importance) - num_channels]
            group = graph.get_pruning_group(layer, prune, sorted(least.tolist()))
            if not graph.check_pruning_group(group):
                return module, "a layer would be left without any channel"
            group.prune()
        reason = _difference(_shapes(module, example), _shapes(pruned, example))
    except CannotPrune:
        raise
    except Exception as error:  # torch-pruning's own, and whatever the pruned forward() raises
        reason = f"with fewer channels there it raises {type(error).__name__}: {_first_line(error)}"
    for parameter in pruned.parameters():
        parameter.grad = None
    return (module, reason) if reason else (pruned.eval(), "")


@contextlib.contextmanager
def _traced(module: nn.Module, example: Mapping[str, Array]) -> Iterator[Any]:
    """Follow a module's channels from call to call; gradients are needed for that, and given back afterwards."""
    flags = {parameter: parameter.requires_grad for parameter in module.parameters()}
    for parameter in flags:
        parameter.requires_grad_(parameter.is_floating_point())
    with operator_by_operator(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # about parameters outside of layers: the check of the shapes decides
        try:
            graph = torch_pruning.DependencyGraph().build_dependency(
                module, given(example), output_transform=_differentiable, verbose=False
            )
        except Exception as error:  # torch-pruning's own, and whatever forward() raises
            raise CannotPrune(model=type(module).__name__, reason=_first_line(error)) from error
        yield graph
    for parameter in module.parameters():
        parameter.requires_grad_(flags.get(parameter, parameter.is_floating_point()))


def _differentiable(returned: object) -> list[torch.Tensor]:
    """Return the outputs that depend on weights; a class that was picked by argmax leads back to none."""
    return [value for value in named_outputs(returned).values() if value.grad_fn is not None]


def _shapes(module: nn.Module, example: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in named_outputs(call(module, example)).items()}


def _difference(before: dict[str, tuple[int, ...]], after: dict[str, tuple[int, ...]]) -> str:
    for name, shape in before.items():
        if after.get(name) != shape:
            return f"its channels are those of the output '{name}'"
    return ""


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")[:200]
