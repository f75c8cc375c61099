"""Sums over all ranks that autograd can differentiate; the rank of this process, and its part of a tensor.

One convention holds everywhere: every rank returns the *global batch's* loss, and the gradient that
an engine averages over ranks (as DDP, FSDP and DeepSpeed do) is that loss's gradient. Therefore the
backward pass of a sum over ranks sums the cotangents of all ranks.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def rank() -> int:
    """Return this process's number among all ranks; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def cpu_group(timeout: timedelta | None = None) -> dist.ProcessGroup:
    """Make a gloo group of all ranks for tensors on the CPU; each thread needs one of its own."""
    group = dist.new_group(backend="gloo", timeout=timeout)
    assert isinstance(group, dist.ProcessGroup)
    return group


def on_all_ranks(work: Callable[[], T], group: dist.ProcessGroup | None = None) -> list[T]:
    """Return what `work` returns on each rank; an error on one rank is raised on all."""
    outcomes: list[Any] = [None] * dist.get_world_size(group)
    try:
        outcome: T | Exception = work()
    except Exception as error:
        outcome = error
    dist.all_gather_object(outcomes, outcome, group=group)
    for each in outcomes:
        if isinstance(each, Exception):
            raise each
    return outcomes


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # Not in place, so that the gradient has a gradient too.
        return sum_over_ranks(grads[0])


def sum_over_ranks(x: Tensor) -> Tensor:
    """Sum `x` (any shape, the same on all ranks) over ranks, differentiably; return `x` on one process.

    The backward pass sums too. So, after the engine's mean over ranks, the gradient of a loss that is
    equal on all ranks is exact.
    """
    return x if world_size() == 1 else _SumOverRanks.apply(x)


def sum_together(*parts: Tensor) -> list[Tensor]:
    """Do what `sum_over_ranks` does with each of some tensors, in one collective call; they share a type."""
    if world_size() == 1:
        return list(parts)
    total = sum_over_ranks(torch.cat([part.flatten() for part in parts]))
    pieces = total.split([part.numel() for part in parts])
    return [piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True)]


def count_over_ranks(count: int) -> int:
    """Sum a number over ranks; every rank waits for the others."""
    total = torch.tensor(count, dtype=torch.int64)
    if world_size() > 1:
        dist.all_reduce(total)
    return int(total)


def stack_of_ranks(x: Tensor) -> Tensor:
    """Return the tensors of all ranks, of one shape, as (ranks, …) in rank order, without gradient."""
    flat = x.new_empty(world_size() * x.numel())
    dist.all_gather_into_tensor(flat, x.flatten())
    return flat.view(world_size(), *x.shape)


class _GatherOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int]) -> Tensor:
        ctx.start = sum(counts[: rank()])
        ctx.count = len(x)
        padded = x.new_zeros(max(counts), *x.shape[1:])
        padded[: len(x)] = x
        parts = stack_of_ranks(padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return sum_over_ranks(grads[0])[ctx.start : ctx.start + ctx.count], None


def gather_over_ranks(x: Tensor) -> Tensor:
    """Return all ranks' rows of `x` in rank order, differentiably.

    Each rank may have another number of rows, of the same shape. This is for statistics that need the whole
    sample, such as order statistics. The hosts send each other their numbers of rows, so each waits for the
    other hosts, but not for a device. The gradient follows the same convention as `sum_over_ranks`.
    """
    if world_size() == 1:
        return x
    counts = stack_of_ranks(torch.tensor(len(x), dtype=torch.int64))
    return _GatherOverRanks.apply(x, counts.tolist())


def own_part(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor, in the same memory: a shard of FSDP or ZeRO-3, or all of it."""
    from torch.distributed.tensor import DTensor  # here, because it takes long, and others do not need it

    if isinstance(tensor, DTensor):
        return tensor.to_local().detach()
    return getattr(tensor, "ds_tensor", tensor).detach()
