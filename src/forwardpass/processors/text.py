"""Sentences in, embeddings out: the processor of sentence encoders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from forwardpass.core.tensors import Array, Tensors, TensorSpec
from forwardpass.errors import MalformedRequest, MissingExtra, SourceNotFound

__all__ = ["SentenceEncoder"]

MAX_TEXTS = 256
MAX_CHARACTERS = 100_000
"""Longer texts would be cut to the model's limit anyway; tokenising them first would only cost time."""


class SentenceEncoder:
    """Tokenises `{"text": "…"}` or `{"text": ["…", "…"]}` and returns `{"embeddings": [[…], …]}`, one row a text.

    It serves models with the inputs `input_ids` and `attention_mask` (int64, `[batch, sequence]`) whose first output
    is `[batch, size]`. Texts longer than the tokenizer's limit are cut there, as its own library does.
    """

    output: ClassVar[str | None] = None
    files: ClassVar[tuple[str, ...]] = ("tokenizer.json",)
    example: ClassVar[Mapping[str, object]] = {"text": ["the cat sleeps", "a kitten naps"]}

    def __init__(self, folder: Path) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise MissingExtra(package="tokenizers", extra="text", purpose="tokenising text") from error
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise SourceNotFound(path=str(path), expected="a tokenizer.json in the format of the tokenizers library")
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.enable_padding(direction="right")

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Ids and their mask."""
        shape = ("texts", "sequence")
        return tuple(TensorSpec(name=name, dtype="int64", shape=shape) for name in ("input_ids", "attention_mask"))

    def encode(self, request: Mapping[str, object]) -> dict[str, Array]:
        """Tokenise one text or several; several are padded to the longest of this request."""
        encodings = self._tokenizer.encode_batch(_texts(request))
        return {
            "input_ids": np.array([encoding.ids for encoding in encodings], dtype=np.int64),
            "attention_mask": np.array([encoding.attention_mask for encoding in encodings], dtype=np.int64),
        }

    def decode(self, outputs: Tensors) -> Mapping[str, object]:
        """Return the rows of the first output as lists."""
        return {"embeddings": next(iter(outputs.values())).tolist()}

    def stream(self, outputs: Tensors) -> Iterator[Mapping[str, object]]:
        """Return the row of one text after the other, so that a long list is never written at once."""
        for index, row in enumerate(next(iter(outputs.values()))):
            yield {"text": index, "embedding": row.tolist()}


def _texts(request: Mapping[str, object]) -> list[str]:
    unknown = sorted(set(request) - {"text"})
    if unknown:
        raise MalformedRequest(reason=f"unknown field '{unknown[0]}'; this model takes 'text'")
    value = request.get("text")
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise MalformedRequest(reason="'text' must be a string or a non-empty list of strings")
    if len(texts) > MAX_TEXTS:
        raise MalformedRequest(reason=f"'text' has {len(texts)} entries, more than the limit of {MAX_TEXTS}")
    if any(len(text) > MAX_CHARACTERS for text in texts):
        raise MalformedRequest(reason=f"a text is longer than the limit of {MAX_CHARACTERS} characters")
    return texts
