"""The encoder families that packing knows: where their layers and projections are.

To add one whose first layer takes what `model.embeddings` gives, describe it in `FAMILIES`: training, the tiny model
and the tests over families take it from there. One with a projection in between, as ELECTRA-small, does not fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Family:
    """How the encoders of one kind are walked."""

    layers: Callable[[Any], nn.ModuleList]
    project: Callable[[Any, Tensor], tuple[Tensor, Tensor, Tensor]]  # (layer, hidden [T, E]) -> query, key, value
    finish: Callable[[Any, Tensor, Tensor], Tensor]  # (layer, attention's output [T, E], hidden [T, E]) -> hidden
    attention: tuple[str, ...]  # its attention projections, as endings of module names
    ffn: tuple[str, ...]
    position_offset: bool = False  # positions start after the padding index, as fairseq's models have it
    relative_bias: bool = False  # attention scores get a learned bias by bucketed distance
    has_pooler: bool = True  # transformers adds a pooler, which is left out, unless told not to
    # What the family's config calls them; transformers knows "num_attention_heads" in each.
    attention_dropout: str = "attention_probs_dropout_prob"
    feed_forward: str = "intermediate_size"

    @property
    def without_pooler(self) -> dict[str, bool]:
        """The argument to `AutoModel` that leaves the pooler out."""
        return {"add_pooling_layer": False} if self.has_pooler else {}


def to_autocast(hidden: Tensor) -> Tensor:
    """In the precision of autocast, once: each projection would make its own copy of what they all read."""
    kind = hidden.device.type
    return hidden.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else hidden


def _bert_project(layer: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    attention, inputs = layer.attention.self, to_autocast(hidden)
    return attention.query(inputs), attention.key(inputs), attention.value(inputs)


def _bert_finish(layer: Any, context: Tensor, hidden: Tensor) -> Tensor:
    hidden = layer.attention.output(context, hidden)
    return layer.output(layer.intermediate(hidden), hidden)


def _mpnet_project(layer: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    attention, inputs = layer.attention.attn, to_autocast(hidden)
    return attention.q(inputs), attention.k(inputs), attention.v(inputs)


def _mpnet_finish(layer: Any, context: Tensor, hidden: Tensor) -> Tensor:
    attention = layer.attention
    hidden = attention.LayerNorm(attention.dropout(attention.attn.o(context)) + hidden)
    return layer.output(layer.intermediate(hidden), hidden)


def _distilbert_project(layer: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    attention, inputs = layer.attention, to_autocast(hidden)
    return attention.q_lin(inputs), attention.k_lin(inputs), attention.v_lin(inputs)


def _distilbert_finish(layer: Any, context: Tensor, hidden: Tensor) -> Tensor:
    hidden = layer.sa_layer_norm(layer.attention.out_lin(context) + hidden)
    return layer.output_layer_norm(layer.ffn(hidden) + hidden)


_BERT_FFN = ("intermediate.dense", r"layer.\d+.output.dense")
_BERT = Family(
    lambda model: model.encoder.layer,
    _bert_project,
    _bert_finish,
    attention=("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
    ffn=_BERT_FFN,
)
_ROBERTA = replace(_BERT, position_offset=True)
FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "mpnet": Family(
        lambda model: model.encoder.layer,
        _mpnet_project,
        _mpnet_finish,
        attention=("attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o"),
        ffn=_BERT_FFN,
        position_offset=True,
        relative_bias=True,
    ),
    "distilbert": Family(
        lambda model: model.transformer.layer,
        _distilbert_project,
        _distilbert_finish,
        attention=("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"),
        ffn=("ffn.lin1", "ffn.lin2"),
        has_pooler=False,
        attention_dropout="attention_dropout",
        feed_forward="hidden_dim",
    ),
}
"""Keyed by `config.model_type`."""
