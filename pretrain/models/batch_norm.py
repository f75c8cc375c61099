"""Batch normalisation over the global batch, on any device and for any split into ranks.

torch.nn.SyncBatchNorm refuses CPU tensors. These layers run on CPUs over gloo too, so that tests without GPUs
test what runs on a cluster. Statistics are float32 under autocast too, and exact where ranks have different
numbers of images (Ioffe & Szegedy 2015, arXiv:1502.03167).
"""

import math
from typing import cast

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pretrain.distributed import count_over_ranks, sum_over_ranks, world_size


class GlobalBatchNorm(nn.Module):
    """Normalises each feature of (…, D) by the mean and variance of the rows of all ranks."""

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
    """torch's layer for (N, C, H, W) over the images of all ranks; parameters and names are torch's."""

    def forward(self, x: Tensor) -> Tensor:
        return _normalize_images(self, x) if _over_ranks(self) else super().forward(x)


class GlobalBatchNormAct2d(BatchNormAct2d):
    """timm's batch norm with activation, as in EfficientNet and RegNet, over the images of all ranks."""

    def forward(self, x: Tensor) -> Tensor:
        if not _over_ranks(self):
            return super().forward(x)
        return self.act(self.drop(_normalize_images(self, x)))


GLOBAL = {nn.BatchNorm2d: GlobalBatchNorm2d, BatchNormAct2d: GlobalBatchNormAct2d}


def synchronize(encoder: nn.Module) -> None:
    """Make the encoder's batch norms use the global batch, in place."""
    for module in encoder.modules():
        if type(module) in GLOBAL:
            # A new module would have to copy all that torch and timm keep in these layers. Changing the class
            # changes `forward` alone: parameters, buffers, names and hooks stay.
            module.__class__ = GLOBAL[type(module)]


def has_batch_norm(encoder: nn.Module) -> bool:
    """Return whether the encoder has a batch norm of any kind."""
    return any(isinstance(module, _BatchNorm) for module in encoder.modules())


def unsynchronized(encoder: nn.Module) -> list[str]:
    """Return the names of batch norms that `synchronize` cannot make global."""
    known = (*GLOBAL, *GLOBAL.values())
    return [
        name
        for name, module in encoder.named_modules()
        if isinstance(module, _BatchNorm) and (type(module) not in known or module.momentum is None)
    ]


def _over_ranks(norm: _BatchNorm) -> bool:
    """Return whether a batch norm is training on several ranks."""
    return norm.training and world_size() > 1


def _normalize_images(norm: _BatchNorm, x: Tensor) -> Tensor:
    """Return what torch's own layer would give for the images (N, C, H, W) of all ranks; count the batch."""
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked += 1
    with torch.autocast(x.device.type, enabled=False):
        normal = _normalize(norm, x.float(), [0, 2, 3], cast(float, norm.momentum))
        return (normal * norm.weight[:, None, None] + norm.bias[:, None, None]).to(x.dtype)


def _normalize(norm: GlobalBatchNorm | _BatchNorm, x: Tensor, dims: list[int], momentum: float) -> Tensor:
    """Normalise `x` by mean and standard deviation over `dims` and all ranks; update running statistics."""
    count = count_over_ranks(math.prod(x.shape[dim] for dim in dims), x.device)
    mean = sum_over_ranks(x.sum(dims, keepdim=True)) / count
    # E[x²] − E[x]² would cancel in float32, so the variance is a second sum, over centred values.
    centred = x - mean
    variance = sum_over_ranks(centred.square().sum(dims, keepdim=True)) / count
    with torch.no_grad():
        unbiased = variance * count / (count - 1).clamp(min=1)
        for running, batch in ((norm.running_mean, mean), (norm.running_var, unbiased)):
            # The engine refuses the update of a batch with a NaN, which must not stay here either.
            assert running is not None
            running.lerp_(torch.where(batch.isfinite(), batch, running.view_as(batch)).flatten(), momentum)
    return centred * torch.rsqrt(variance + norm.eps)
