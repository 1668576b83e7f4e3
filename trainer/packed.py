"""A transformer forward over real tokens only.

A batch is one flat run of T tokens, sequences laid end to end, longest first. Embeddings, projections, feed-forward
and norms never look across tokens, so they run on the flat run as it is. Attention runs over groups of sequences of
near-equal length, padded to the longest of their group, so padding costs a little attention and nothing else.

Every weight is reached by calling the Hugging Face model's own submodules, which is why LoRA layers, checkpoints and
exports need to know nothing of packing.

Shapes: T tokens, N sequences, E width, H heads, D head width, n sequences of a group, L its padded length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.lean import dropout as drop

# A group holds sequences at least this share as long as its longest. Lower means fewer, larger calls and more padding.
# From 0.6 to 1 an attention call of real tickets took the same time within its noise (2 cores).
GROUP_TOLERANCE = 0.8
ROWS = 1024  # tokens that the CPU takes through the second half of a layer at a time
BLOCK = 64  # rows of a sequence that one program of the GPU kernel owns


@dataclass(frozen=True)
class Group:
    """Neighbouring sequences that share one attention call."""

    start: int  # first token of the group in the flat run
    stop: int
    count: int  # n
    length: int  # L
    # For sequences of unequal length only: where each token of the flat run stands in the padded [n * L], and [n, L]
    # marks of what is real there.
    slots: Tensor | None = None
    real: Tensor | None = None


@dataclass(frozen=True)
class TokenBatch:
    """N sequences as one run of T tokens, longest first; `order` remembers how they came."""

    input_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64, from 0 within each sequence
    segments: Tensor  # [T] int64, which sequence of the run a token belongs to
    lengths: Tensor  # [N] int64, descending
    order: Tensor  # [N] int64: sequence i as given is sequence order[i] of the run
    groups: tuple[Group, ...]  # for the CPU
    blocks: Tensor  # [NB, 3] int32, for the GPU: first token of the sequence, its length, first row of a block of rows
    max_length: int
    scores: int  # attention scores a head, over all sequences

    @property
    def token_count(self) -> int:
        """T."""
        return self.input_ids.shape[0]

    @property
    def waste(self) -> float:
        """Share of the attention scores that is padding, where attention runs in groups."""
        padded = sum(group.count * group.length**2 for group in self.groups)
        return 1 - self.scores / padded


def pack(ids: np.ndarray, lengths: np.ndarray) -> TokenBatch:
    """Lay sequences end to end, longest first.

    Args:
        ids: [T] the tokens of all sequences in the order given, end to end.
        lengths: [N] tokens in each, at least 1.
    """
    descending = np.argsort(-lengths, kind="stable")
    starts = np.cumsum(lengths) - lengths
    sorted_lengths = lengths[descending]
    positions = ragged_arange(sorted_lengths)
    segments = np.repeat(np.arange(len(lengths)), sorted_lengths)
    order = np.empty_like(descending)
    order[descending] = np.arange(len(lengths))
    counts = -(-sorted_lengths // BLOCK)
    begins = np.cumsum(sorted_lengths) - sorted_lengths
    blocks = [np.repeat(begins, counts), np.repeat(sorted_lengths, counts), ragged_arange(counts) * BLOCK]
    return TokenBatch(
        input_ids=torch.from_numpy(ids[starts[descending][segments] + positions].astype(np.int64)),
        positions=torch.from_numpy(positions),
        segments=torch.from_numpy(segments),
        lengths=torch.from_numpy(sorted_lengths.astype(np.int64)),
        order=torch.from_numpy(order),
        groups=tuple(_group(sorted_lengths)),
        blocks=torch.from_numpy(np.stack(blocks, axis=1).astype(np.int32)),
        max_length=int(sorted_lengths[0]),
        scores=int((sorted_lengths.astype(np.int64) ** 2).sum()),
    )


def ragged_arange(lengths: np.ndarray) -> np.ndarray:
    """0..l-1 for every l of [N], end to end: int64 [sum of lengths]."""
    lengths = lengths.astype(np.int64)
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _group(lengths: np.ndarray) -> list[Group]:
    """Cut descending lengths [N] into groups within GROUP_TOLERANCE of their longest."""
    groups = []
    first = token = 0
    while first < len(lengths):
        length = int(lengths[first])
        # Descending, so the group ends at the first sequence that is too short.
        last = int(np.searchsorted(-lengths, -GROUP_TOLERANCE * length, side="right"))
        members = lengths[first:last]
        stop = token + int(members.sum())
        if members[-1] == length:
            groups.append(Group(token, stop, len(members), length))
        else:
            real = np.arange(length)[None, :] < members[:, None]
            slots = torch.from_numpy(np.flatnonzero(real))
            groups.append(Group(token, stop, len(members), length, slots, torch.from_numpy(real)))
        first, token = last, stop
    return groups


@dataclass(frozen=True)
class Family:
    """How the encoders of one kind are walked."""

    layers: Callable[[Any], nn.ModuleList]
    project: Callable[[Any, Tensor], tuple[Tensor, Tensor, Tensor]]  # (layer, hidden [T, E]) -> query, key, value
    finish: Callable[[Any, Tensor, Tensor], Tensor]  # (layer, what attention found [T, E], hidden) -> hidden
    attention: tuple[str, ...]  # its attention projections, as endings of module names
    ffn: tuple[str, ...]
    position_offset: bool = False  # positions start after the padding index, as fairseq's models have it
    relative_bias: bool = False  # attention scores get a learned bias by bucketed distance
    heads: str = "num_attention_heads"
    attention_dropout: str = "attention_probs_dropout_prob"


def _lowered(hidden: Tensor) -> Tensor:
    """In the precision of autocast, once: each projection would make its own copy of what they all read."""
    kind = hidden.device.type
    return hidden.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else hidden


def _bert_project(layer: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    own, inputs = layer.attention.self, _lowered(hidden)
    return own.query(inputs), own.key(inputs), own.value(inputs)


def _bert_finish(layer: Any, context: Tensor, hidden: Tensor) -> Tensor:
    hidden = layer.attention.output(context, hidden)
    return layer.output(layer.intermediate(hidden), hidden)


def _mpnet_project(layer: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    own, inputs = layer.attention.attn, _lowered(hidden)
    return own.q(inputs), own.k(inputs), own.v(inputs)


def _mpnet_finish(layer: Any, context: Tensor, hidden: Tensor) -> Tensor:
    attention = layer.attention
    hidden = attention.LayerNorm(attention.dropout(attention.attn.o(context)) + hidden)
    return layer.output(layer.intermediate(hidden), hidden)


def _distilbert_project(layer: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    own, inputs = layer.attention, _lowered(hidden)
    return own.q_lin(inputs), own.k_lin(inputs), own.v_lin(inputs)


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
        heads="n_heads",
        attention_dropout="attention_dropout",
    ),
}
"""Keyed by `config.model_type`."""


def packed_hidden_states(model: Any, batch: TokenBatch, compiled: bool = False) -> Tensor:
    """The last hidden state [T, E] of a model of one of the FAMILIES, for the flat run of a batch.

    Args:
        compiled: compile a layer with torch.compile, once for all layers and all numbers of tokens.
    """
    family = FAMILIES[model.config.model_type]
    positions = batch.positions
    if family.position_offset:
        positions = _fairseq_positions(batch, model.embeddings.word_embeddings.padding_idx)
    hidden = model.embeddings(input_ids=batch.input_ids[None], position_ids=positions[None])[0]
    bias = None
    if family.relative_bias:
        # [1, H, L, L] for the longest sequence; shorter ones see its upper left corner. Only the shape of the first
        # argument is read.
        bias = _lowered(model.encoder.compute_position_bias(hidden.new_empty(1, batch.max_length, 1)))
    dropout = getattr(model.config, family.attention_dropout) if model.training else 0.0
    attend = choose_attention(batch, bias, getattr(model.config, family.heads), dropout)
    project, finish = family.project, family.finish
    if compiled:
        project, finish = _compiled(project), _compiled(finish)
    # Tokens meet in attention alone. The CPU takes the rest of a layer a cache's worth of them at a time.
    rows = ROWS if hidden.device.type == "cpu" else batch.token_count
    for layer in family.layers(model):
        context = attend(*project(layer, hidden))
        parts = zip(context.split(rows), hidden.split(rows), strict=True)
        hidden = torch.cat([finish(layer, *part) for part in parts])
    return hidden


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # Dynamic: a batch's number of tokens does not recompile, and nothing need be rounded up to a few sizes.
    return torch.compile(function, dynamic=True)


def choose_attention(batch: TokenBatch, bias: Tensor | None, heads: int, dropout: float) -> Callable[..., Tensor]:
    """Attention (query, key, value [T, H * D]) -> [T, H * D] within the sequences of a batch, by where it runs.

    Args:
        bias: [1, H, L, L], added to the scores by position within the sequence.
    """
    if has_kernel(batch.input_ids.device):
        from trainer.flash import packed_attention

        # By distance from -(L - 1) to L - 1: the first column upwards, then the first row.
        table = torch.cat([bias[0, :, :, 0].flip(1), bias[0, :, 0, 1:]], 1).float() if bias is not None else None

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return packed_attention(query, key, value, batch.blocks, BLOCK, heads, table, dropout)

        return attend

    masks = [attention_mask(group, bias) for group in batch.groups]

    def attend_in_groups(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return grouped_attention(query, key, value, batch.groups, masks, heads, dropout)

    return attend_in_groups


def has_kernel(device: torch.device) -> bool:
    """Whether attention runs as a Triton kernel there; elsewhere it runs in groups of sequences."""
    return device.type == "cuda" and find_spec("triton") is not None


def _fairseq_positions(batch: TokenBatch, padding: int) -> Tensor:
    """Positions [T] from padding + 1; a padding token, which a text may spell out, is skipped and gets `padding`."""
    real = (batch.input_ids != padding).long()
    counted = real.cumsum(0)
    starts = batch.lengths.cumsum(0) - batch.lengths
    before = (counted - real)[starts][batch.segments]
    return (counted - before) * real + padding


def attention_mask(group: Group, bias: Tensor | None) -> Tensor | None:
    """What the scores of a group get, for all layers: the bias [1, H, >= L, >= L] by position, -inf on padding.

    [n or 1, H or 1, L, L], or a boolean mark of the real keys [n, 1, 1, L] where there is no bias, or None.
    """
    if bias is not None:
        bias = bias[:, :, : group.length, : group.length]
    if group.real is None:
        return bias
    real_keys = group.real[:, None, None, :]
    return real_keys if bias is None else bias.masked_fill(~real_keys, -torch.inf)


def grouped_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    groups: Sequence[Group],
    masks: Sequence[Tensor | None],
    heads: int,
    dropout: float = 0.0,
) -> Tensor:
    """Attention within each sequence of a flat run.

    Args:
        query, key, value: [T, H * D].
        groups: the sequences, covering the run in order.
        masks: the `attention_mask` of each.
        heads: H.
        dropout: probability for each attention weight.

    Returns:
        [T, H * D].
    """
    # One split a tensor, so that backward joins the pieces once instead of adding full-size gradients group by group.
    sizes = [group.stop - group.start for group in groups]
    pieces = zip(groups, masks, query.split(sizes), key.split(sizes), value.split(sizes), strict=True)
    return torch.cat([_group_attention(group, mask, q, k, v, heads, dropout) for group, mask, q, k, v in pieces])


def _group_attention(
    group: Group, mask: Tensor | None, query: Tensor, key: Tensor, value: Tensor, heads: int, dropout: float
) -> Tensor:
    n, length, width = group.count, group.length, query.shape[-1]

    def padded(flat: Tensor) -> Tensor:
        """[tokens of the group, H * D] -> [n, H, L, D]"""
        if group.slots is not None:
            flat = flat.new_zeros(n * length, width).index_copy(0, group.slots, flat)
        return flat.view(n, length, heads, -1).transpose(1, 2)

    out = _attention(padded(query), padded(key), padded(value), mask, dropout)
    flat = out.transpose(1, 2).reshape(n * length, width)
    return flat if group.slots is None else flat.index_select(0, group.slots)


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, probability: float) -> Tensor:
    """Attention over [n, H, L, D] with the mask that `scaled_dot_product_attention` takes.

    On the CPU that function has no fast path under dropout, and its slow one draws the dropout on one thread and
    guards against rows without any key, which do not occur here.
    """
    if not probability or query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, mask, dropout_p=probability)
    scores = (query * query.shape[-1] ** -0.5) @ key.mT
    if mask is not None:
        scores = scores.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else scores.add_(mask)
    return drop(scores.softmax(-1), probability) @ value


def padded_hidden_states(model: Any, batch: TokenBatch) -> Tensor:
    """The same through the model's own padded forward, for families that packing does not know."""
    count = batch.lengths.shape[0]
    input_ids = batch.input_ids.new_full((count, batch.max_length), model.config.pad_token_id or 0)
    attention_mask = torch.zeros_like(input_ids)
    input_ids[batch.segments, batch.positions] = batch.input_ids
    attention_mask[batch.segments, batch.positions] = 1
    hidden = model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    return hidden[batch.segments, batch.positions]


def pool(hidden: Tensor, batch: TokenBatch, pooling: str) -> Tensor:
    """[T, E] -> [N, E] in the order the sequences were given: the mean over tokens, or the first token ("cls")."""
    if pooling == "cls":
        pooled = hidden[batch.lengths.cumsum(0) - batch.lengths]
    else:
        count = batch.lengths.shape[0]
        summed = hidden.new_zeros(count, hidden.shape[1], dtype=torch.promote_types(hidden.dtype, torch.float32))
        summed = summed.index_add(0, batch.segments, hidden.to(summed.dtype))
        pooled = summed / batch.lengths[:, None]
    return pooled[batch.order]
