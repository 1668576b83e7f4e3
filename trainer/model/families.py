"""The encoder families that packing knows: where their layers and projections are.

To add one whose first layer takes what `model.embeddings` gives, describe it in `FAMILIES`: training, the tiny model
and the tests over families take it from there. One with a projection in between, as ELECTRA-small, does not fit.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
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
    # What the family's config calls them; transformers knows "num_attention_heads" in each.
    attention_dropout: str = "attention_probs_dropout_prob"
    feed_forward: str = "intermediate_size"


def without_pooler(kind: type) -> dict[str, bool]:
    """The argument of a model's class that leaves its pooler out, where it has one."""
    return {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(kind).parameters else {}


def to_autocast(hidden: Tensor) -> Tensor:
    """In the precision of autocast, once: each projection would make its own copy of what they all read."""
    kind = hidden.device.type
    return hidden.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else hidden


def _projections(*names: str) -> Callable[[Any, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """`Family.project` by the names of the three projections in a layer."""
    paths = [name.split(".") for name in names]

    def project(layer: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # getattr alone: torch.compile cannot follow an operator.attrgetter, and would compile the layer in two parts.
        query, key, value = (reduce(getattr, path, layer) for path in paths)
        inputs = to_autocast(hidden)
        return query(inputs), key(inputs), value(inputs)

    return project


def _bert_finish(layer: Any, context: Tensor, hidden: Tensor) -> Tensor:
    hidden = layer.attention.output(context, hidden)
    return layer.output(layer.intermediate(hidden), hidden)


def _mpnet_finish(layer: Any, context: Tensor, hidden: Tensor) -> Tensor:
    attention = layer.attention
    hidden = attention.LayerNorm(attention.dropout(attention.attn.o(context)) + hidden)
    return layer.output(layer.intermediate(hidden), hidden)


def _distilbert_finish(layer: Any, context: Tensor, hidden: Tensor) -> Tensor:
    hidden = layer.sa_layer_norm(layer.attention.out_lin(context) + hidden)
    return layer.output_layer_norm(layer.ffn(hidden) + hidden)


_BERT_FFN = ("intermediate.dense", r"layer.\d+.output.dense")
_BERT = Family(
    lambda model: model.encoder.layer,
    _projections("attention.self.query", "attention.self.key", "attention.self.value"),
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
        _projections("attention.attn.q", "attention.attn.k", "attention.attn.v"),
        _mpnet_finish,
        attention=("attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o"),
        ffn=_BERT_FFN,
        position_offset=True,
        relative_bias=True,
    ),
    "distilbert": Family(
        lambda model: model.transformer.layer,
        _projections("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        _distilbert_finish,
        attention=("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"),
        ffn=("ffn.lin1", "ffn.lin2"),
        attention_dropout="attention_dropout",
        feed_forward="hidden_dim",
    ),
}
"""Keyed by `config.model_type`."""
