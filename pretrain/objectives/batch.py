"""Precision, sample count and covariance, as every statistic of the global batch needs them."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import torch
from torch import Tensor

from pretrain.distributed import count_over_ranks, sum_over_ranks, world_size

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
        device = next(x.device.type for x in values if isinstance(x, Tensor))
        # The meta device, on which sizes are checked, has no autocast of its own.
        with torch.autocast("cpu" if device == "meta" else device, enabled=False):
            wide = cast(Callable[..., R], statistic)
            return wide(*map(_widened, args), **{name: _widened(x) for name, x in kwargs.items()})

    return computed


def _widened(x: object) -> object:
    """Return a tensor of half precision in float32, and anything else unchanged."""
    return x.float() if isinstance(x, Tensor) and x.dtype in (torch.bfloat16, torch.float16) else x


def sample_count(x: Tensor, dim: int = 0) -> Tensor:
    """Return the number of samples along `dim` over all ranks, as a scalar tensor.

    Raises `ValueError` where there are none. Over several ranks, one rank may be empty; if all are, the
    statistic becomes NaN instead, because a check would make the GPU wait for the count.
    """
    if world_size() == 1 and x.shape[dim] == 0:
        raise ValueError(f"an objective over a batch needs at least one sample, got shape {tuple(x.shape)}")
    return count_over_ranks(x.shape[dim], x.device)


@in_float32
def covariance(z: Tensor) -> Tensor:
    """Return the covariance (D, D) of the rows of `z` (B, D) over all ranks.

    The sum is divided by count - 1; for one row the result is zero. Raises `ValueError` for a wrong shape or
    no sample.
    """
    if z.ndim != 2:
        raise ValueError(f"z must be (samples, dimensions), not {tuple(z.shape)}")
    count = sample_count(z)
    centered = z - sum_over_ranks(z.sum(0)) / count
    return sum_over_ranks(centered.T @ centered) / (count - 1).clamp(min=1)
