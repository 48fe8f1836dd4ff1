"""Two small convolutional networks in the styles of ResNet and MobileNet, for grey images of 64x64 pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["SIDE", "build_mobilenet", "build_resnet"]

SIDE = 64
"""Pixels along an edge: enough that computing, and not calling, is what takes time."""


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, num_inputs: int, num_outputs: int, stride: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            _norm_conv(num_inputs, num_outputs, 3, stride),
            nn.ReLU(),
            _norm_conv(num_outputs, num_outputs, 3, 1),
        )
        is_same = stride == 1 and num_inputs == num_outputs
        self.shortcut = nn.Identity() if is_same else _norm_conv(num_inputs, num_outputs, 1, stride)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.relu(self.inner(hidden) + self.shortcut(hidden))


class Inverted(nn.Module):
    """Wide in the middle, where each channel has a kernel of its own; a shortcut where the shape stays."""

    def __init__(self, num_inputs: int, num_outputs: int, stride: int, expansion: int = 4) -> None:
        super().__init__()
        width = num_inputs * expansion
        self.inner = nn.Sequential(
            _norm_conv(num_inputs, width, 1, 1),
            nn.ReLU6(),
            _norm_conv(width, width, 3, stride, groups=width),
            nn.ReLU6(),
            _norm_conv(width, num_outputs, 1, 1),
        )
        self.has_shortcut = stride == 1 and num_inputs == num_outputs

    def forward(self, hidden: Tensor) -> Tensor:
        inner: Tensor = self.inner(hidden)
        return inner + hidden if self.has_shortcut else inner


class Classifier(nn.Module):
    """`pixels` float32 `[batch, 1, 64, 64]` -> `[batch, 10]` scores."""

    def __init__(self, blocks: list[nn.Module], width: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(width, 10)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        return {"scores": self.head(self.blocks(pixels).mean((2, 3)))}


def build_resnet() -> nn.Module:
    """Return a residual network of 14 convolutions, untrained."""
    stem = [_norm_conv(1, 32, 3, 2), nn.ReLU()]
    blocks = [
        Residual(32, 32, 1),
        Residual(32, 64, 2),
        Residual(64, 64, 1),
        Residual(64, 128, 2),
        Residual(128, 128, 1),
    ]
    return Classifier([*stem, *blocks], 128)


def build_mobilenet() -> nn.Module:
    """Return a network of depthwise and pointwise convolutions, untrained."""
    stem = [_norm_conv(1, 16, 3, 2), nn.ReLU6()]
    blocks = [
        Inverted(16, 24, 1),
        Inverted(24, 24, 1),
        Inverted(24, 40, 2),
        Inverted(40, 40, 1),
        Inverted(40, 80, 2),
        Inverted(80, 80, 1),
    ]
    last = [_norm_conv(80, 160, 1, 1), nn.ReLU6()]
    return Classifier([*stem, *blocks, *last], 160)


def _norm_conv(num_inputs: int, num_outputs: int, size: int, stride: int, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(num_inputs, num_outputs, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(num_outputs),
    )
