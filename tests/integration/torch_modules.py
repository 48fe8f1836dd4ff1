"""PyTorch sources that the tests name as `tests.integration.torch_modules:…`."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["build"]


class Scorer(nn.Module):
    """`pixels [batch, 64]` -> `[batch, 10]`."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layer(pixels))


def build() -> nn.Module:
    torch.manual_seed(0)
    return Scorer()
