"""PyTorch modules, good and bad, that the tests convert and name as `tests.integration.conversion_sources:…`."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TwoInputs(nn.Module):
    """Two inputs, two named outputs, and a layer whose weights are shared under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.again = self.layer

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"a": self.again(self.layer(x)), "b": (y * 2).sum(dim=1)}


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x * 2
        return x * 3


class Unsupported(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvals(x.reshape(-1, 2, 2)).real


class FrozenBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(2, 4) * 2


class Tokens(nn.Module):
    """Means over a sequence, returned as a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 4)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        words = self.table(ids)
        return words.mean(dim=1), words


class FrozenNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x))


class Recurrent(nn.Module):
    """An LSTM over `x [batch, length, 4]`, whose outputs follow the length."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 3, batch_first=True)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        states, (last, _) = self.lstm(x)
        return {"states": states, "last": last[0], "doubled": torch.cat((states, states), dim=1)}


class BakedWidth(nn.Module):
    """Runs at any width in PyTorch, and is traced with the width of its example."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.arange(int(x.shape[1]), dtype=torch.float32).numpy().sum().item()


class OneWidth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.layer(x)))


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        return torch.relu(self.second(hidden))


class Picked(nn.Module):
    """Picks columns by whole numbers that are computed, and multiplies them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 32)

    def forward(self, x: Tensor) -> Tensor:
        columns = torch.arange(4) + 0
        return self.layer(x[:, columns])


class Convolved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv1d(1, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layer(x[:, None])).mean(2)


class Counting(nn.Module):
    """Adds how often it was called, which no conversion can keep."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x + self.count


class WideNetwork(nn.Module):
    """Images `[batch, 3, 12, 12]` to named scores, with enough weights for 8 bits to show in the size."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 64, 3, padding=1)
        self.depthwise = nn.Conv2d(64, 64, 3, groups=64)
        self.last = nn.Conv2d(64, 128, 3)
        self.head = nn.Linear(128, 10)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        seen = torch.relu(self.last(torch.relu(self.depthwise(torch.relu(self.first(pixels))))))
        return {"scores": self.head(seen.mean(dim=(2, 3)))}


def wide_network() -> nn.Module:
    torch.manual_seed(1)
    return WideNetwork()


def tokens() -> nn.Module:
    torch.manual_seed(1)
    return Tokens()


def recurrent() -> nn.Module:
    torch.manual_seed(1)
    return Recurrent()


def two_inputs() -> nn.Module:
    return TwoInputs()


def raises() -> nn.Module:
    raise RuntimeError("no such checkpoint")


def no_module() -> int:
    return 7


not_callable = 7


class CountingInABuffer(nn.Module):
    """Changes a buffer in place, so that no two calls answer the same."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Tensor
        self.register_buffer("count", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x + self.count


class Drawing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class DoublingItsInput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2) + 1


class OneRow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(1, 4) * 2


class SixteenRows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(16, 4) * 2


class OtherForTwoRows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if len(x) == 2 else x * 3


class Selecting(nn.Module):
    """Keeps the rows that begin with a positive number: how many, the values decide."""

    def forward(self, x: Tensor) -> Tensor:
        return x[x[:, 0] > 0]


def selecting() -> nn.Module:
    return Selecting().eval()
