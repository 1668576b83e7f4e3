"""The gradient of a contrastive batch, which may be larger than memory: every step passes here, in chunks or in one.

The contrastive loss needs all embeddings of a batch at once, the encoder does not. One chunk takes the direct way. Of
several, (1) embed each and forget its graph; (2) compute the loss and its gradient on the embeddings; (3) embed each
again, with the same dropout, keep its graph, and push the embeddings' gradient through it. Activations of one chunk are
alive at a time, and the gradient is that of the whole batch (Gao et al. 2021, arXiv:2101.06983).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from trainer.loss.objective import Loss
from trainer.model.packing import TokenBatch
from trainer.system.devices import random_states, set_random_states


def backward_in_chunks(
    encode: Callable[[TokenBatch], Tensor],
    chunks: Sequence[TokenBatch],
    positions: Sequence[Tensor],
    loss_of: Callable[[Tensor], Loss],
    backward: Callable[[Tensor], None],
    autocast: Callable[[], AbstractContextManager[None]],
) -> Loss:
    """Accumulate the gradient of one contrastive batch that is encoded in chunks.

    Args:
        encode: a chunk -> its embeddings [n, E].
        chunks: what the batch is cut into, on the encoder's device.
        positions: for each chunk [n], which rows of the whole [N, E] its embeddings are.
        loss_of: embeddings [N, E] -> loss.
        backward: runs backward from a scalar (with loss scaling where the precision needs it).
        autocast: context for the encoder's forward.
    """
    if len(chunks) == 1:
        with autocast():
            rows = encode(chunks[0])
        loss = loss_of(rows[_inverse(positions)])
        backward(loss.total)
        return loss

    states, parts = [], []
    for chunk in chunks:
        states.append(random_states())
        # On a GPU with a graph that is thrown away: a layer compiled without gradient would draw other dropout.
        with autocast(), torch.set_grad_enabled(chunk.input_ids.device.type == "cuda"):
            parts.append(encode(chunk).detach())
    embeddings = torch.cat(parts)[_inverse(positions)].requires_grad_()
    loss = loss_of(embeddings)
    backward(loss.total)
    gradient = embeddings.grad
    assert gradient is not None  # every embedding of a batch takes part in its loss
    after = random_states()
    for chunk, state, where in zip(chunks, states, positions, strict=True):
        set_random_states(state)
        with autocast():
            rows = encode(chunk)
        rows.backward(gradient[where].to(rows.dtype))
    set_random_states(after)
    return loss


def _inverse(positions: Sequence[Tensor]) -> Tensor:
    """Index that puts the chunks' rows, end to end, back in the order of the batch."""
    return torch.cat(list(positions)).argsort()
