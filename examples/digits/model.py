"""A small convolutional classifier of 8x8 grey digits."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["build"]


class DigitClassifier(nn.Module):
    """`pixels` float32 `[batch, 1, 8, 8]` in 0 to 1 -> `[batch, 10]` scores."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        return {"scores": self.head(self.features(pixels))}


def build() -> nn.Module:
    """Return the untrained network; the weights come from `digits.train`."""
    return DigitClassifier()
