"""The few collective operations of a run. With one process each is the identity, so callers need not ask.

Every rank holds the same weights and computes its own part of one global loss; the gradient of the whole is the sum
of the ranks' gradients. Nothing here divides by the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from trainer.errors import TrainerError

T = TypeVar("T")


def rank() -> int:
    """This process's number, 0 when there is one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes take part."""
    return dist.get_world_size() if dist.is_initialized() else 1


class _Gather(torch.autograd.Function):
    """Forward: the ranks' rows end to end. Backward: each rank gets the sum of all ranks' gradients of its rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: Sequence[int]) -> Tensor:
        ctx.start, ctx.count = sum(counts[: rank()]), counts[rank()]
        return gather_rows(rows, counts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        return gradient[ctx.start : ctx.start + ctx.count], None


def gather_with_gradient(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """[counts[rank], E] on each rank -> [sum of counts, E] on all, differentiable.

    Every rank must know all counts, and must run backward, whether its own loss used the rows or not.
    """
    return rows if world_size() == 1 else _Gather.apply(rows, counts)


def gather_rows(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """[counts[rank], ...] on each rank -> [sum of counts, ...] on all, without gradient."""
    if world_size() == 1:
        return rows
    # Collectives want equal shapes: fill up to the largest part, cut off again after.
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: rows.shape[0]] = rows.detach()
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def sum_gradients(parameters: Iterable[Parameter]) -> None:
    """Replace each parameter's gradient by its sum over ranks. A parameter without one counts as zero."""
    if world_size() == 1:
        return
    parameters = list(parameters)
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])
    dist.all_reduce(flat)
    sizes = [parameter.numel() for parameter in parameters]
    for parameter, part in zip(parameters, flat.split(sizes), strict=True):
        parameter.grad = part.view_as(parameter)


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of a tensor over ranks, without gradient."""
    value = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def share_object(value: Any) -> Any:
    """Rank 0's value of a small JSON-like object, on all ranks."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def on_first_rank(action: Callable[[], T]) -> T:
    """Do something on rank 0. All ranks get its result, or end with its exit code where it failed.

    Raises:
        TrainerError: on rank 0, as `action` raised it, once the others know.
    """
    result, failure = None, None
    if rank() == 0:
        try:
            result = action()
        except TrainerError as error:
            failure = error
    result, code = share_object((result, failure and failure.exit_code))
    if failure is not None:
        raise failure
    if code:
        raise SystemExit(code)  # rank 0 says why
    return result


def share_parameters(parameters: Iterable[Tensor]) -> None:
    """Give every rank rank 0's values, in place."""
    if world_size() > 1:
        with torch.no_grad():
            for parameter in parameters:
                dist.broadcast(parameter, 0)


def gather_objects(value: Any) -> list[Any]:
    """Every rank's value of a small object, on all ranks."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values
