"""What is to be made leaner and how, as users say it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from forwardpass.core.references import is_reference
from forwardpass.errors import InvalidOption

__all__ = ["LeanSettings", "PruneSettings", "SparsitySettings", "StudentSettings", "TrainSettings"]

FLOOR = "floor"
_LAYERS, _WIDTH = r"layers=(?P<layers>\d{1,4})", r"width=(?P<width>\d{1,2}(?:\.\d+)?)%"
_STUDENT = re.compile(rf"(?:{_LAYERS}(?:,(?!$)|$))?(?:{_WIDTH})?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneSettings:
    """How many channels go: until `share` of the multiply-adds is gone, or without it, until the floor would break."""

    share: float | None = 0.5
    round_to: int | None = None
    """Channel counts that are left are multiples of this: kernels work on that many at a time. None: what suits this
    processor (16 with AVX-512, else 8), or the half of it where the network's layers are too narrow for that."""
    max_trials: int = 96
    """How many times a group of channels is pruned on its own to see what it costs."""

    def __post_init__(self) -> None:
        if self.share is not None:
            _check_share("prune", self.share)
        if self.round_to is not None and self.round_to < 1:
            raise InvalidOption(option="round_to", value=str(self.round_to), expected="1 or more channels")

    @classmethod
    def parse(cls, text: str, *, round_to: int | None = None) -> PruneSettings:
        """Read `50%` (of the multiply-adds), or `floor` (as many as the quality floor allows).

        >>> PruneSettings.parse("50%").share, PruneSettings.parse("floor").share
        (0.5, None)

        Raises:
            InvalidOption: it is neither.
        """
        if text == FLOOR:
            return cls(share=None, round_to=round_to)
        expected = "a share of the multiply-adds such as 50%, or 'floor'"
        return cls(share=_percentage("--prune", text, expected), round_to=round_to)


@dataclass(frozen=True, slots=True, kw_only=True)
class SparsitySettings:
    """Which share of the weights becomes zero, counted over the whole network or layer by layer."""

    share: float
    per_layer: bool = False

    def __post_init__(self) -> None:
        _check_share("sparsity", self.share)

    @classmethod
    def parse(cls, text: str, *, per_layer: bool = False) -> SparsitySettings:
        """Read `80%`.

        Raises:
            InvalidOption: it is no share.
        """
        expected = "a share of the weights such as 80%"
        return cls(share=_percentage("--sparsity", text, expected), per_layer=per_layer)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentSettings:
    """Who learns: a network of the user's, or the source with fewer layers, narrower ones, or both."""

    reference: str = ""
    """`package.module:factory`, or empty for a student made from the source."""
    num_layers: int | None = None
    """How many of the source's repeated layers stay."""
    width: float | None = None
    """Which share of the multiply-adds stays when the layers are made narrower."""

    def __post_init__(self) -> None:
        if not (self.reference or self.num_layers or self.width):
            raise InvalidOption(option="--distill", value=str(self), expected="layers=N, width=N% or a factory")
        if self.width is not None:
            _check_share("width", self.width)

    @classmethod
    def parse(cls, text: str) -> StudentSettings:
        """Read `package.module:factory`, `layers=2`, `width=50%` or `layers=2,width=50%`.

        >>> StudentSettings.parse("layers=2,width=50%")
        StudentSettings(reference='', num_layers=2, width=0.5)

        Raises:
            InvalidOption: it is none of them.
        """
        if is_reference(text):
            return cls(reference=text)
        match = _STUDENT.fullmatch(text)
        num_layers = int(match["layers"] or 0) if match else 0
        width = float(match["width"] or 0) / 100 if match else 0.0
        if not (num_layers or width):
            expected = "package.module:factory, layers=2, width=50% or layers=2,width=50%"
            raise InvalidOption(option="--distill", value=text, expected=expected)
        return cls(num_layers=num_layers or None, width=width or None)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """How a network is trained: AdamW, the learning rate rising over a tenth of the steps and falling as a cosine."""

    num_epochs: int = 40
    batch_size: int = 32
    learning_rate: float = 1e-3
    seed: int = 0
    temperature: float = 2.0
    """Of the softened decisions that a student of classes learns from (Hinton et al., 2015)."""
    label_weight: float = 0.5
    """The share of the labels in the loss where there is a teacher, too."""
    hidden_weight: float = 1.0
    """The weight of the hidden states beside the outputs, where layers of both networks belong together."""
    num_threads: int = 1
    """One thread adds in one order: the same seed gives the same weights to the last bit."""
    checkpoint_s: float = 10.0
    """How much work a lost process may cost."""

    def __post_init__(self) -> None:
        counts = {"num_epochs": self.num_epochs, "batch_size": self.batch_size, "num_threads": self.num_threads}
        for name, value in counts.items():
            if value < (0 if name == "num_epochs" else 1):
                raise InvalidOption(option=name, value=str(value), expected="a positive number")
        limits = {
            "learning_rate": (0 < self.learning_rate < 1, "a rate between 0 and 1, such as 0.001"),
            "temperature": (self.temperature > 0, "more than 0"),
            "label_weight": (0 <= self.label_weight <= 1, "0 to 1"),
            "hidden_weight": (self.hidden_weight >= 0, "0 or more"),
        }
        for name, (is_met, expected) in limits.items():
            if not is_met:
                raise InvalidOption(option=name, value=str(getattr(self, name)), expected=expected)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeanSettings:
    """What is made beside the variants that every search makes; nothing unless something is asked for."""

    prune: PruneSettings | None = None
    sparsity: SparsitySettings | None = None
    student: StudentSettings | None = None
    quantise_aware: bool = False
    """Whether a copy of the source learns to answer right with the rounding of INT8 static."""
    training: TrainSettings = field(default_factory=TrainSettings)
    train_data: str = ""
    """Samples to learn from; empty for the calibration split. None of them may be in the other splits."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is asked for."""
        return not (self.prune or self.sparsity or self.student or self.quantise_aware)


def _percentage(option: str, text: str, expected: str) -> float:
    try:
        share = float(text.removesuffix("%")) / 100 if text.endswith("%") else -1.0
    except ValueError:
        share = -1.0
    if not 0 < share < 1:
        raise InvalidOption(option=option, value=text, expected=expected)
    return share


def _check_share(option: str, share: float) -> None:
    if not 0 < share < 1:
        raise InvalidOption(option=option, value=str(share), expected="a share between 0 and 1")
