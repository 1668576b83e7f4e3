"""The forward pass over a packed batch, and pooling."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from trainer.model.attention import choose_attention
from trainer.model.families import FAMILIES, to_autocast
from trainer.model.packing import TokenBatch

ROWS = 1024  # tokens that the CPU takes through the second half of a layer at a time


def packed_hidden_states(model: Any, batch: TokenBatch, compiled: bool = False, attention: str = "groups") -> Tensor:
    """The last hidden state [T, E] of a model of one of the FAMILIES, for the flat run of a batch.

    Args:
        compiled: compile a layer with torch.compile, once for all layers and all numbers of tokens.
        attention: "groups" or "kernel"; see `choose_attention`.
    """
    family = FAMILIES[model.config.model_type]
    positions = batch.positions
    if family.position_offset:
        positions = _fairseq_positions(batch, model.embeddings.word_embeddings.padding_idx)
    hidden = model.embeddings(input_ids=batch.input_ids[None], position_ids=positions[None])[0]
    bias = None
    if family.relative_bias:
        bias = to_autocast(_position_bias(model, batch.max_length))
    dropout = getattr(model.config, family.attention_dropout) if model.training else 0.0
    attend = choose_attention(batch, bias, model.config.num_attention_heads, dropout, attention)
    project, finish = family.project, family.finish
    if compiled:
        project, finish = _compiled(project), _compiled(finish)
    for layer in family.layers(model):
        context = attend(*project(layer, hidden))
        if hidden.device.type == "cpu":  # tokens meet in attention alone: the rest a cache's worth of them at a time
            parts = zip(context.split(ROWS), hidden.split(ROWS), strict=True)
            hidden = torch.cat([finish(layer, *part) for part in parts])
        else:
            hidden = finish(layer, context, hidden)
    return hidden


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # Dynamic: a batch's number of tokens does not recompile, and nothing need be rounded up to a few sizes.
    return torch.compile(function, dynamic=True)


def forget_compiled() -> None:
    """Let go of all that was compiled: torch keeps few versions of a function, and falls back to the plain one where
    many models were trained in one process."""
    torch.compiler.reset()
    _compiled.cache_clear()


def _position_bias(model: Any, length: int) -> Tensor:
    """What is added to the logits of attention, [1, H, L, L] for the longest sequence; shorter ones see a corner of it.

    transformers' own `compute_position_bias` sends its buckets to the device each time, for which the host waits.
    """
    encoder = model.encoder
    longest = max(length, model.config.max_position_embeddings)
    buckets = _buckets(encoder.relative_position_bucket, longest, encoder.relative_attention_bias.weight.device)
    values: Tensor = encoder.relative_attention_bias(buckets[:length, :length])
    return values.permute(2, 0, 1)[None].contiguous()


@cache
def _buckets(bucket_of: Callable[[Tensor], Tensor], longest: int, device: torch.device) -> Tensor:
    """The bucket [L, L] of every distance, made on the CPU: another device's logarithm may fall beside a border."""
    with torch.inference_mode(False):  # what is made in it serves no gradient later
        positions = torch.arange(longest)
        return bucket_of(positions[None, :] - positions[:, None]).to(device)


def _fairseq_positions(batch: TokenBatch, padding: int) -> Tensor:
    """Positions [T] from padding + 1; a padding token, which a text may spell out, is skipped and gets `padding`."""
    real = (batch.input_ids != padding).long()
    counted = real.cumsum(0)
    starts = batch.lengths.cumsum(0) - batch.lengths
    before = (counted - real)[starts][batch.segments]
    return (counted - before) * real + padding


def padded_hidden_states(model: Any, batch: TokenBatch) -> Tensor:
    """The same through the model's own padded forward, for families that packing does not know."""
    count = batch.lengths.shape[0]
    padding = getattr(model.config, "pad_token_id", None) or 0
    if not 0 <= padding < model.get_input_embeddings().num_embeddings:  # configs of decoders write -1
        padding = 0
    input_ids = batch.input_ids.new_full((count, batch.max_length), padding)
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
