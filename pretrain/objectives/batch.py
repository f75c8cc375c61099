"""What every statistic of the global batch needs: its precision, its count, its covariance."""

import torch
from torch import Tensor

from pretrain.distributed import count_over_ranks, sum_over_ranks, world_size


def as_statistic_dtype(x: Tensor) -> Tensor:
    """`x` in float32; float64 stays, for references."""
    return x if x.dtype == torch.float64 else x.float()


def sample_count(x: Tensor, dim: int = 0) -> Tensor:
    """The number of samples along `dim` over all ranks; `ValueError` where there are none.

    A rank may be empty. Whether all are is left to NaN: to look would make a GPU wait.
    """
    if world_size() == 1 and x.shape[dim] == 0:
        raise ValueError(f"an objective over a batch needs at least one sample, got shape {tuple(x.shape)}")
    return count_over_ranks(x.shape[dim], x.device)


def covariance(z: Tensor) -> Tensor:
    """The covariance (D, D) over all ranks of the rows of `z` (B, D), over count - 1; zero for one row."""
    if z.ndim != 2:
        raise ValueError(f"z must be (samples, dimensions), not {tuple(z.shape)}")
    count = sample_count(z)
    with torch.autocast(z.device.type, enabled=False):
        z = as_statistic_dtype(z)
        centered = z - sum_over_ranks(z.sum(0)) / count
        return sum_over_ranks(centered.T @ centered) / (count - 1).clamp(min=1)
