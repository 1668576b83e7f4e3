"""Attention within the sequences of a packed batch: in groups of near-equal length, or as a GPU kernel."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.model.fast_layers import dropout as drop
from trainer.model.packing import Group, TokenBatch
from trainer.system.processor import is_widened


def choose_attention(
    batch: TokenBatch, bias: Tensor | None, heads: int, dropout: float, way: str = "groups"
) -> Callable[..., Tensor]:
    """Attention (query, key, value [T, H * D]) -> [T, H * D] within the sequences of a batch.

    Args:
        bias: [1, H, L, L], added to the scores by position within the sequence.
        way: "kernel", a Triton kernel for a GPU, or "groups", for any device.
    """
    if way == "kernel":
        from trainer.model.attention_triton import packed_attention

        # By distance from -(L - 1) to L - 1: the first column upwards, then the first row.
        table = torch.cat([bias[0, :, :, 0].flip(1), bias[0, :, 0, 1:]], 1).float() if bias is not None else None

        return lambda query, key, value: packed_attention(query, key, value, batch.blocks, heads, table, dropout)

    masks = [attention_mask(group, bias) for group in batch.groups]
    sizes = [group.stop - group.start for group in batch.groups]

    def attend_in_groups(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # One split a tensor, so that backward joins the pieces once instead of adding full-size gradients by group.
        pieces = zip(batch.groups, masks, query.split(sizes), key.split(sizes), value.split(sizes), strict=True)
        return torch.cat([_group_attention(*piece, heads, dropout) for piece in pieces])

    return attend_in_groups


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
    guards against rows without any key, which do not occur here. Where it emulates bf16, a product of two batches of
    matrices takes 50 times as long as in fp32.
    """
    if is_widened(query):
        wide = mask.float() if mask is not None and mask.dtype != torch.bool else mask
        with torch.autocast("cpu", enabled=False):
            return _attention(query.float(), key.float(), value.float(), wide, probability).to(query.dtype)
    if not probability or query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, mask, dropout_p=probability)
    scores = (query * query.shape[-1] ** -0.5) @ key.mT
    if mask is not None:
        scores = scores.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else scores.add_(mask)
    return drop(scores.softmax(-1), probability) @ value
