"""Precision, sample count and covariance, as every statistic of the global batch needs them."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import torch
from torch import Tensor

from isotorus.device import without_autocast
from pretrain.distributed import sum_over_ranks, sum_together, world_size

P = ParamSpec("P")
R = TypeVar("R")


def in_float32(statistic: Callable[P, R]) -> Callable[P, R]:
    """Make a function of tensors compute in float32 to its last line, whatever the autocast around it.

    Tensors of lower precision are converted first; float64, which reference computations use, stays. Every
    statistic of a batch is decorated with this.
    """

    @functools.wraps(statistic)
    def computed(*args: P.args, **kwargs: P.kwargs) -> R:
        values = [*args, *kwargs.values()]
        with without_autocast(next(x.device for x in values if isinstance(x, Tensor))):
            wide = cast(Callable[..., R], statistic)
            return wide(*map(_widened, args), **{name: _widened(x) for name, x in kwargs.items()})

    return computed


def _widened(x: object) -> object:
    """Return a tensor of half precision in float32, and anything else unchanged."""
    return x.float() if isinstance(x, Tensor) and x.dtype in (torch.bfloat16, torch.float16) else x


def own_count(x: Tensor, dim: int = 0) -> Tensor:
    """Return this rank's number of samples along `dim` as a scalar of the type of `x`, exact up to 2²⁴.

    It is made on the device, and is summed over ranks together with the sums that it divides. Raises
    `ValueError` where there are no samples. Over several ranks, one rank may be empty; if all are, the
    statistic becomes NaN instead, because a check would make the host wait for the count.
    """
    if world_size() == 1 and x.shape[dim] == 0:
        raise ValueError(f"an objective over a batch needs at least one sample, got shape {tuple(x.shape)}")
    return x.new_full((), x.shape[dim])


@in_float32
def covariance(z: Tensor) -> Tensor:
    """Return the covariance (…, D, D) of the rows of `z` (…, B, D) over all ranks.

    The sum is divided by count - 1; for one row the result is zero. Raises `ValueError` for a wrong shape or
    no sample.
    """
    return covariance_and_sums(z)[0]


@in_float32
def covariance_and_sums(z: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Return `covariance`, the number of rows on all ranks, and the sums of `others` over ranks.

    The others are added in the same collective call as the mean.
    """
    if z.ndim < 2:
        raise ValueError(f"z must be (…, samples, dimensions), not {tuple(z.shape)}")
    total, count, *totals = sum_together(z.sum(-2), own_count(z, -2), *others)
    # Sums of products that are not centred would cancel, so they are a second call.
    centered = z - (total / count).unsqueeze(-2)
    matrix = sum_over_ranks(centered.mT @ centered) / (count - 1).clamp(min=1)
    return matrix, count, *totals
