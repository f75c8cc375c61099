"""Batch normalisation over the global batch, on any device and with any split into ranks.

`torch.nn.SyncBatchNorm` refuses CPU tensors; these run on gloo too, so that what is tested on a
laptop is what runs on a cluster. Statistics are float32 whatever the autocast, and exact for uneven
ranks (Ioffe & Szegedy 2015, arXiv:1502.03167).
"""

import math
from typing import cast

import torch
from torch import Tensor, nn

from pretrain.distributed import count_over_ranks, sum_over_ranks, world_size


class GlobalBatchNorm(nn.Module):
    """Normalise each feature of (..., D) by the mean and variance of all ranks' rows."""

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
            if self.training:
                normal = _normalize(self, x.float(), [*range(x.ndim - 1)], self.momentum)
            else:
                normal = (x.float() - self.running_mean) * torch.rsqrt(self.running_var + self.eps)
            return normal * self.weight + self.bias


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """torch's layer for (N, C, H, W), over all ranks' images; same parameters, buffers and names."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            normal = _normalize(self, x.float(), [0, 2, 3], cast(float, self.momentum))
            return (normal * self.weight[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def synchronize(encoder: nn.Module) -> None:
    """Make the encoder's batch norms see the global batch, in place."""
    for module in encoder.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = GlobalBatchNorm2d


def has_batch_norm(encoder: nn.Module) -> bool:
    return any(isinstance(module, nn.BatchNorm2d) for module in encoder.modules())


def _normalize(norm: GlobalBatchNorm | nn.BatchNorm2d, x: Tensor, dims: list[int], momentum: float) -> Tensor:
    """x less its mean over `dims` and all ranks, over its std; the running statistics follow."""
    count = count_over_ranks(math.prod(x.shape[dim] for dim in dims), x.device)
    mean = sum_over_ranks(x.sum(dims, keepdim=True)) / count
    # A second sum over centred values: E[x²] − E[x]² would cancel in float32.
    centred = x - mean
    variance = sum_over_ranks(centred.square().sum(dims, keepdim=True)) / count
    with torch.no_grad():
        unbiased = variance * count / (count - 1).clamp(min=1)
        for running, batch in ((norm.running_mean, mean), (norm.running_var, unbiased)):
            # A batch with a NaN is refused by the optimizer and must not stay here either.
            assert running is not None
            running.lerp_(torch.where(batch.isfinite(), batch, running.view_as(batch)).flatten(), momentum)
    return centred * torch.rsqrt(variance + norm.eps)
