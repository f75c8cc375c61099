"""Batch normalisation over the global batch, on any device and for any split into ranks.

torch.nn.SyncBatchNorm refuses CPU tensors. These layers run on CPUs over gloo too, so that tests without GPUs
test what runs on a cluster. Statistics are float32 under autocast too, and exact where ranks have different
numbers of images (Ioffe & Szegedy 2015, arXiv:1502.03167).
"""

from typing import Any, cast

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from isotorus.device import without_autocast
from pretrain.distributed import sum_over_ranks, world_size


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
        with without_autocast(x.device):
            x, mean, variance = x.float(), self.running_mean, self.running_var
            if self.training:
                count, mean, variance = _moments_of_ranks(*_moments_of_rows(x.flatten(0, -2)))
                _follow(self, count, mean.detach(), variance.detach(), self.momentum)
                mean, variance = mean.float(), variance.float()
            return (x - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias


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
    with without_autocast(x.device):
        count, mean, variance = _moments_of_images(x.detach())
        _follow(norm, count, mean, variance, cast(float, norm.momentum))
        normal: Tensor = _NormalizeImages.apply(x, norm.weight, norm.bias, count, mean, variance, norm.eps)
        return normal


def _moments_of_rows(x: Tensor) -> tuple[int, Tensor, Tensor]:
    """Return the number of this rank's rows (N, D), and the mean and variance of each column."""
    # E[x²] − E[x]² would cancel in float32.
    variance, mean = torch.var_mean(x, 0, correction=0)
    return len(x), mean, variance


@torch.no_grad()
def _moments_of_images(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the number of pixels, and the mean and variance of each channel, in the images of all ranks."""
    zeros = x.new_zeros(x.shape[1], dtype=torch.float32)
    moments = torch.batch_norm_update_stats(x, zeros, zeros.clone(), 0.0)  # torch's kernel, of this rank
    return _moments_of_ranks(x.numel() // x.shape[1], *moments)


def _moments_of_ranks(count: int, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the count, mean and variance of all ranks from those of this rank; over ranks, in float64.

    Ranks sum their count, count · mean and count · mean square, which are as large for any number of ranks.
    E[x²] − E[x]² cancels digits: the variance has a relative error of about 1e-16 · (1 + mean²/variance),
    which is below the 6e-8 of float32 up to means of 20,000 standard deviations.
    """
    if world_size() == 1:
        return mean.new_full((), count), mean, variance
    mean, variance = mean.double(), variance.double()
    own = torch.cat([mean.new_full((1,), count), count * mean, count * (variance + mean.square())])
    total, first, second = sum_over_ranks(own).split([1, len(mean), len(mean)])
    center = first / total
    return total.squeeze(), center, (second / total - center.square()).clamp(min=0)


class _NormalizeImages(torch.autograd.Function):
    """Batch norm with the moments of all ranks, by torch's fused kernels for one process."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        count: Tensor,
        mean: Tensor,
        variance: Tensor,
        eps: float,
    ) -> Tensor:
        mean, scale = mean.float(), torch.rsqrt(variance + eps).float()
        ctx.save_for_backward(x, weight, count, mean, scale)
        ctx.eps = eps
        normal: Tensor = torch.native_batch_norm(
            x, weight, bias, mean, variance.float(), training=False, momentum=0.0, eps=eps
        )[0]
        return normal

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the images, weight and bias.

        torch's kernel takes this rank's means of grad and of grad · normal out of grad; what is left is to
        replace them by the means of all ranks.
        """
        x, weight, count, mean, scale = ctx.saved_tensors
        of_x, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, None, None, mean, scale, True, ctx.eps, [True, True, True]
        )
        own = torch.stack([of_bias, of_weight]).double()
        mean_grad, mean_product = (sum_over_ranks(own) / count - own * x.shape[1] / x.numel()).float()
        slope = weight * scale * scale * mean_product
        offset = weight * scale * mean_grad - mean * slope
        slope, offset = (v.to(x.dtype)[:, None, None] for v in (slope, offset))
        return of_x.sub_(offset).addcmul_(x, slope, value=-1), of_weight, of_bias, None, None, None, None


@torch.no_grad()
def _follow(
    norm: GlobalBatchNorm | _BatchNorm, count: Tensor, mean: Tensor, variance: Tensor, momentum: float
) -> None:
    """Move the running statistics towards the moments of a batch."""
    unbiased = variance * count / (count - 1).clamp(min=1)
    for running, batch in ((norm.running_mean, mean), (norm.running_var, unbiased)):
        # The engine refuses the update of a batch with a NaN, which must not stay here either.
        assert running is not None
        found = batch.flatten().to(running.dtype)
        running.lerp_(torch.where(found.isfinite(), found, running), momentum)
