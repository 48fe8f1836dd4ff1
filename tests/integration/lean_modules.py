"""Networks that pruning and distillation are tried on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Encoder", "Residual", "build", "build_encoder", "build_small", "build_wrong"]


class Residual(nn.Module):
    """`pixels [batch, 1, 8, 8]` -> `scores [batch, 10]`: a skip connection, normalisation and a depthwise kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.inner = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1))
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.head = nn.Linear(32, 10)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        hidden = self.stem(pixels)
        hidden = torch.relu(hidden + self.inner(hidden))
        hidden = torch.relu(self.depthwise(hidden))
        return {"scores": self.head(hidden.mean((2, 3)))}


class Encoder(nn.Module):
    """`ids [batch, length]` -> `scores [batch, 3]`: a transformer of six layers."""

    def __init__(self, num_layers: int = 6) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.encoder(self.words(ids)).mean(1))


class Small(nn.Module):
    """Takes what `Residual` takes, and gives as many scores as it is told."""

    def __init__(self, num_scores: int) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(64, num_scores))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(pixels)


def build() -> nn.Module:
    torch.manual_seed(0)
    return Residual()


def build_encoder() -> nn.Module:
    torch.manual_seed(0)
    return Encoder()


def build_small() -> nn.Module:
    torch.manual_seed(0)
    return Small(10)


def build_wrong() -> nn.Module:
    return Small(9)
