"""Precision, sample count and covariance, as every statistic of the global batch needs them."""

import torch
from torch import Tensor

from pretrain.distributed import count_over_ranks, sum_over_ranks, world_size


def as_statistic_dtype(x: Tensor) -> Tensor:
    """Return `x` in float32; float64, which reference computations use, stays."""
    return x if x.dtype == torch.float64 else x.float()


def sample_count(x: Tensor, dim: int = 0) -> Tensor:
    """Return the number of samples along `dim` over all ranks, as a scalar tensor.

    Raises `ValueError` where there are none. Over several ranks, one rank may be empty; if all are, the
    statistic becomes NaN instead, because a check would make the GPU wait for the count.
    """
    if world_size() == 1 and x.shape[dim] == 0:
        raise ValueError(f"an objective over a batch needs at least one sample, got shape {tuple(x.shape)}")
    return count_over_ranks(x.shape[dim], x.device)


def covariance(z: Tensor) -> Tensor:
    """Return the covariance (D, D) of the rows of `z` (B, D) over all ranks.

    The sum is divided by count - 1; for one row the result is zero. Raises `ValueError` for a wrong shape or
    no sample.
    """
    if z.ndim != 2:
        raise ValueError(f"z must be (samples, dimensions), not {tuple(z.shape)}")
    count = sample_count(z)
    with torch.autocast(z.device.type, enabled=False):
        z = as_statistic_dtype(z)
        centered = z - sum_over_ranks(z.sum(0)) / count
        return sum_over_ranks(centered.T @ centered) / (count - 1).clamp(min=1)
