"""sentence-transformers' own trainer on the same pairs and model: what this one is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer import losses
from torch import Tensor, nn

from trainer.data.pairs import PairTable
from trainer.model.fast_layers import make_lean
from trainer.model.forward import packed_hidden_states
from trainer.model.packing import pack

CUDA = torch.cuda.is_available()
RANKING = ("mnrl", "cached_gist", "cached_gist_sharp")
LABELLED = ("online_contrastive", "cosent")
LEFT_OUT = {"margin_mse": "needs a teacher's scores, and the pairs have labels alone"}


def load_peer(model: Path | str, max_length: int, packed: bool = False, **options: Any) -> SentenceTransformer:
    """The model as sentence-transformers loads it, on the GPU where there is one.

    Args:
        packed: let its transformer module compute real tokens only (`pack_forward`).
        options: of the SentenceTransformer.
    """
    peer = SentenceTransformer(str(model), device="cuda" if CUDA else "cpu", **options)
    peer.max_seq_length = max_length
    if packed:
        pack_forward(peer)
    return peer


def pack_forward(peer: SentenceTransformer) -> None:
    """Have the transformer module of a model compute its token embeddings without padding; all else stays as it is.

    The module's own weights and layers are used, and padded places are zero, which no pooling reads.
    """
    module: Any = peer[0]
    make_lean(module.auto_model)

    def forward(self: nn.Module, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        ids, mask = features["input_ids"], features["attention_mask"].bool()
        batch = pack(ids[mask].numpy(), mask.sum(dim=1).numpy())
        rows = torch.argsort(batch.order)[batch.segments]  # of the padded batch, where each token of the run stands
        hidden: Tensor = packed_hidden_states(self.auto_model, batch)
        padded = hidden.new_zeros(*mask.shape, hidden.shape[1])
        return features | {"token_embeddings": padded.index_put((rows, batch.positions), hidden)}

    module.forward = MethodType(forward, module)


def loss_of(
    kind: str, model: SentenceTransformer, guide: SentenceTransformer | None, dims: tuple[int, ...]
) -> nn.Module:
    """One of its losses at every Matryoshka dim. `guide` is for those of RANKING that look for false negatives."""
    gist: dict[str, Any] = {"model": model, "guide": guide}
    make = {
        "mnrl": lambda: losses.MultipleNegativesRankingLoss(model),
        "cached_gist": lambda: losses.CachedGISTEmbedLoss(**gist, temperature=0.05),  # the scale of the others
        "cached_gist_sharp": lambda: losses.CachedGISTEmbedLoss(**gist),  # its default, 0.01
        "online_contrastive": lambda: losses.OnlineContrastiveLoss(model),
        "cosent": lambda: losses.CoSENTLoss(model),
    }
    return losses.MatryoshkaLoss(model, make[kind](), matryoshka_dims=list(dims))


def columns_for(kind: str, table: PairTable) -> dict[str, dict[str, list[Any]]]:
    """The data sets that a kind of loss is trained on: every row for LABELLED, every positive for RANKING.

    A positive takes a labelled negative of its anchor along while there are any left, and else goes without.
    """
    if kind in LABELLED:
        labels = table.score.tolist() if kind == "cosent" else table.label.astype(int).tolist()
        columns = table.columns()
        return {"all": {"text1": columns["texts1"], "text2": columns["texts2"], "label": labels}}
    texts, first, second = table.texts, table.text1, table.text2
    negatives: dict[int, list[int]] = {}
    for row in (~table.label).nonzero()[0]:
        negatives.setdefault(int(first[row]), []).append(int(second[row]))
    triplets: dict[str, list[Any]] = {"anchor": [], "positive": [], "negative": []}
    pairs: dict[str, list[Any]] = {"anchor": [], "positive": []}
    for row in table.label.nonzero()[0]:
        left = negatives.get(int(first[row]))
        columns = triplets if left else pairs
        columns["anchor"].append(texts[first[row]])
        columns["positive"].append(texts[second[row]])
        if left:
            triplets["negative"].append(texts[left.pop(0)])
    return {name: columns for name, columns in (("triplets", triplets), ("pairs", pairs)) if columns["anchor"]}


def train_peer(
    model: SentenceTransformer,
    columns: Mapping[str, Mapping[str, list[Any]]],
    loss: nn.Module,
    folder: Path,
    callbacks: Any = (),
    evaluator: Any = None,
    **arguments: Any,
) -> None:
    """Train on columns of texts by name of the data set; `arguments` are those of its trainer."""
    usual: dict[str, Any] = {"weight_decay": 0.01, "use_cpu": not CUDA, "save_strategy": "no", "report_to": "none"}
    data = {name: Dataset.from_dict(dict(each)) for name, each in columns.items()}
    SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(output_dir=str(folder), **(usual | arguments)),
        train_dataset=data if len(data) > 1 else next(iter(data.values())),
        loss=loss,
        evaluator=evaluator,
        callbacks=list(callbacks),
    ).train()
