"""sentence-transformers' own trainer on the same pairs, model and batches: what this one is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss

CUDA = torch.cuda.is_available()


def load_peer(model: Path, max_length: int, **model_kwargs: Any) -> SentenceTransformer:
    """The model as sentence-transformers loads it, on the GPU where there is one."""
    peer = SentenceTransformer(str(model), device="cuda" if CUDA else "cpu", model_kwargs=model_kwargs)
    peer.max_seq_length = max_length
    return peer


def train_peer(
    model: SentenceTransformer,
    columns: dict[str, list[str]],
    dims: tuple[int, ...],
    folder: Path,
    callbacks: Any = (),
    **arguments: Any,
) -> None:
    """Train on columns of texts with its Matryoshka loss; `arguments` are those of its trainer."""
    usual = {"weight_decay": 0.01, "use_cpu": not CUDA, "save_strategy": "no", "report_to": "none"}
    SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(output_dir=str(folder), **usual, **arguments),
        train_dataset=Dataset.from_dict(columns),
        loss=MatryoshkaLoss(model, MultipleNegativesRankingLoss(model), matryoshka_dims=list(dims)),
        callbacks=list(callbacks),
    ).train()
