"""Batch normalisation over the global batch, on any device and with any split into ranks.

`torch.nn.SyncBatchNorm` refuses CPU tensors; these run on gloo too, so that what is tested on a
laptop is what runs on a cluster. Statistics are float32 whatever the autocast, and exact for uneven
ranks (Ioffe & Szegedy 2015, arXiv:1502.03167).
"""

import math
from typing import cast

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

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
        return _normalize_images(self, x) if _over_ranks(self) else super().forward(x)


class GlobalBatchNormAct2d(BatchNormAct2d):
    """timm's batch norm with its activation, as EfficientNet and RegNet have it, over all ranks' images."""

    def forward(self, x: Tensor) -> Tensor:
        if not _over_ranks(self):
            return super().forward(x)
        return self.act(self.drop(_normalize_images(self, x)))


GLOBAL = {nn.BatchNorm2d: GlobalBatchNorm2d, BatchNormAct2d: GlobalBatchNormAct2d}


def synchronize(encoder: nn.Module) -> None:
    """Make the encoder's batch norms see the global batch, in place."""
    for module in encoder.modules():
        if type(module) in GLOBAL:
            module.__class__ = GLOBAL[type(module)]


def has_batch_norm(encoder: nn.Module) -> bool:
    return any(isinstance(module, _BatchNorm) for module in encoder.modules())


def unsynchronized(encoder: nn.Module) -> list[str]:
    """Names of batch norms that `synchronize` has no counterpart for."""
    known = (*GLOBAL, *GLOBAL.values())
    return [
        name
        for name, module in encoder.named_modules()
        if isinstance(module, _BatchNorm) and (type(module) not in known or module.momentum is None)
    ]


def _over_ranks(norm: _BatchNorm) -> bool:
    return norm.training and world_size() > 1


def _normalize_images(norm: _BatchNorm, x: Tensor) -> Tensor:
    """What torch's own layer gives (N, C, H, W) of all ranks; counts the batch as that does."""
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked += 1
    with torch.autocast(x.device.type, enabled=False):
        normal = _normalize(norm, x.float(), [0, 2, 3], cast(float, norm.momentum))
        return (normal * norm.weight[:, None, None] + norm.bias[:, None, None]).to(x.dtype)


def _normalize(norm: GlobalBatchNorm | _BatchNorm, x: Tensor, dims: list[int], momentum: float) -> Tensor:
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
