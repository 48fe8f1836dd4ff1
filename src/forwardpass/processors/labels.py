"""Scores in words: the processor of classifiers that are given tensors, such as the last step of a pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, ClassVar

import msgspec

from forwardpass.core.tensors import Array, Tensors, TensorSpec
from forwardpass.processors.ranking import Activation, rank
from forwardpass.processors.uploads import read_settings

__all__ = ["Labels"]

FILE_NAME = "labels.json"


class LabelSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the classes are called, and how many of them are told."""

    labels: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    output: str | None = None
    """The output with the scores; without it the first."""
    top_k: Annotated[int, msgspec.Meta(ge=1)] = 5
    activation: Activation = Activation.SOFTMAX


class Labels:
    """Returns `{"predictions": [[{"index", "score", "label"}, …], …]}`, a list a row of the scores `[batch, classes]`.

    It encodes nothing: asked by itself, the model takes `{"inputs": {"name": nested list}}`.
    """

    files: ClassVar[tuple[str, ...]] = (FILE_NAME,)
    inputs: ClassVar[tuple[TensorSpec, ...] | None] = None

    def __init__(self, folder: Path) -> None:
        self._settings = read_settings(folder / FILE_NAME, LabelSettings)

    @property
    def output(self) -> str | None:
        """The scores."""
        return self._settings.output

    def decode(self, outputs: Tensors) -> Mapping[str, object]:
        """Return the best classes of every row."""
        return {"predictions": [self._rank(row) for row in self._scores(outputs)]}

    def stream(self, outputs: Tensors) -> Iterator[Mapping[str, object]]:
        """Return the best classes of one row after the other."""
        for index, row in enumerate(self._scores(outputs)):
            yield {"row": index, "predictions": self._rank(row)}

    def _scores(self, outputs: Tensors) -> Array:
        return outputs[self._settings.output] if self._settings.output else next(iter(outputs.values()))

    def _rank(self, row: Array) -> list[dict[str, object]]:
        settings = self._settings
        return rank(row, settings.labels, top_k=settings.top_k, activation=settings.activation)
