"""Tokenise real English sentences: `python -m sentences.prepare FOLDER`.

The sentences are those of Python's own reference manual, which every installation has. Writes one `.npz` for each
length, and the tokenizer's file for the processor.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections import defaultdict
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
from tokenizers import Tokenizer

from sentences.model import MODEL_FOLDER

NUM_SENTENCES = 400
NUM_WORDS = range(4, 41)
LENGTH_STEP = 4
"""Sentences are grouped by length in steps of so many tokens and padded within a group, so that a few shapes occur."""

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_PLAIN = re.compile(r"[A-Z][A-Za-z ,;'()-]+[.!?]")


def real_sentences() -> list[str]:
    """Return sentences of the manual that are prose, evenly spread over it, always the same."""
    found: dict[str, None] = {}
    for topic in sorted(topics):
        for paragraph in topics[topic].split("\n\n"):
            for sentence in _SENTENCE.split(" ".join(paragraph.split())):
                if _PLAIN.fullmatch(sentence) and len(sentence.split()) in NUM_WORDS:
                    found.setdefault(sentence)
    sentences = list(found)
    return [sentences[at] for at in np.linspace(0, len(sentences) - 1, NUM_SENTENCES).astype(int)]


def prepare(folder: Path) -> int:
    """Write the samples and the tokenizer; return the number of sentences."""
    tokenizer = Tokenizer.from_file(str(MODEL_FOLDER / "tokenizer.json"))
    tokenizer.no_padding()
    by_length: dict[int, list[list[int]]] = defaultdict(list)
    sentences = real_sentences()
    for encoding in tokenizer.encode_batch(sentences):
        length = -(-len(encoding.ids) // LENGTH_STEP) * LENGTH_STEP
        by_length[length].append(encoding.ids)
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    for length, rows in by_length.items():
        ids = np.array([row + [0] * (length - len(row)) for row in rows], dtype=np.int64)
        np.savez(data / f"length-{length:03}.npz", input_ids=ids, attention_mask=(ids != 0).astype(np.int64))
    (folder / "tokenizer").mkdir(exist_ok=True)
    shutil.copyfile(MODEL_FOLDER / "tokenizer.json", folder / "tokenizer" / "tokenizer.json")
    return len(sentences)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    print(f"{prepare(target)} sentences in {target}/data, the tokenizer in {target}/tokenizer")
