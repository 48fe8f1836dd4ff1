"""Checkpoints of a training: plain tensors, written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from forwardpass.errors import MissingExtra

try:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file
except ImportError as error:
    raise MissingExtra(package="safetensors", extra="torch", purpose="keeping checkpoints") from error

__all__ = ["load_checkpoint", "save_checkpoint"]


def save_checkpoint(
    path: Path, key: str, num_steps: int, networks: Mapping[str, nn.Module], optimiser: torch.optim.Optimizer
) -> None:
    """Write what the next step depends on; a process that is lost meanwhile leaves the checkpoint before."""
    tensors = {
        f"{name}.{part}": tensor
        for name, network in networks.items()
        for part, tensor in network.state_dict().items()
        if isinstance(tensor, torch.Tensor)
    }
    for number, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{number}.{part}": tensor for part, tensor in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    plain = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    save_file(plain, partial, metadata={"key": key, "num_steps": str(num_steps)})
    partial.replace(path)


def load_checkpoint(path: Path, key: str, networks: Mapping[str, nn.Module], optimiser: torch.optim.Optimizer) -> int:
    """Restore a checkpoint of the same training and return how many steps it had done; 0 without one."""
    try:
        with safe_open(path, framework="pt") as file:
            found = file.metadata() or {}
            if found.get("key") != key:
                return 0
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
    except (OSError, SafetensorError):
        return 0
    for name, network in networks.items():
        network.load_state_dict(_below(tensors, f"{name}."))
    _restore_optimiser(optimiser, _below(tensors, "optimiser."))
    return int(found["num_steps"])


def _restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        number, _, part = name.partition(".")
        state.setdefault(int(number), {})[part] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def _below(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
