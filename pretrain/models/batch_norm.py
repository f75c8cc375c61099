"""Batch normalisation over the global batch, on any device and with any split into ranks.

`torch.nn.SyncBatchNorm` refuses CPU tensors; this one runs on gloo too, so that what is tested on a
laptop is what runs on a cluster.
"""

import torch
from torch import Tensor, nn

from pretrain.distributed import count_over_ranks, sum_over_ranks


class GlobalBatchNorm(nn.Module):
    """Normalise each feature of (..., D) by the mean and variance of all ranks' rows.

    Statistics are float32 whatever the autocast, and exact for uneven ranks (Ioffe & Szegedy 2015).
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            rows = x.float().flatten(0, -2)
            if self.training:
                centred, variance = self._batch_statistics(rows)
            else:
                centred, variance = rows - self.running_mean, self.running_var
            normal = centred * torch.rsqrt(variance + self.eps) * self.weight + self.bias
        return normal.unflatten(0, x.shape[:-1])

    def _batch_statistics(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        count = count_over_ranks(len(rows), rows.device)
        mean = sum_over_ranks(rows.sum(0)) / count
        # A second sum over centred rows: E[x²] − E[x]² would cancel in float32.
        centred = rows - mean
        variance = sum_over_ranks(centred.square().sum(0)) / count
        self._follow(self.running_mean, mean)
        self._follow(self.running_var, variance * count / (count - 1).clamp(min=1))
        return centred, variance

    @torch.no_grad()
    def _follow(self, running: Tensor, batch: Tensor) -> None:
        # A batch with a NaN is refused by the optimizer and must not stay here either.
        running.lerp_(torch.where(batch.isfinite(), batch, running), self.momentum)
