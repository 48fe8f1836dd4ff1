"""PyTorch sources that the tests name as `tests.integration.torch_modules:…`."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["build", "build_convolutional", "build_pooling", "build_products"]


class Scorer(nn.Module):
    """`pixels [batch, 64]` -> `[batch, 10]`."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layer(pixels))


class Convolutional(nn.Module):
    """`pixels [batch, 1, 8, 8]` -> `scores [batch, 10]`."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels, self.hidden, self.head = nn.Conv2d(1, 16, 3, padding=1), nn.Linear(256, 256), nn.Linear(256, 10)

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = torch.max_pool2d(torch.relu(self.kernels(pixels)), 2).flatten(1)
        return {"scores": self.head(torch.relu(self.hidden(hidden)))}


class Products(nn.Module):
    """`pixels [batch, 1, 8, 8]` -> `scores [batch, 10]`: nothing but matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"scores": self.layers(pixels.flatten(1))}


class Pooling(nn.Module):
    """`pixels [batch, 1, 8, 8]` -> `scores [batch, 10]`: nothing that could be quantised."""

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"scores": torch.sigmoid(pixels.flatten(1)[:, :10])}


def build() -> nn.Module:
    torch.manual_seed(0)
    return Scorer()


def build_convolutional() -> nn.Module:
    torch.manual_seed(0)
    return Convolutional()


def build_products() -> nn.Module:
    torch.manual_seed(0)
    return Products()


def build_pooling() -> nn.Module:
    return Pooling()
