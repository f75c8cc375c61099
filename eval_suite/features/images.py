"""Arithmetic on image tensors (N, C, H, W): scaling, normalising, rotating."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def unit_range(images: Tensor) -> Tensor:
    """Convert uint8 or uint16 pixels to float32 in [0, 1]."""
    return images.float() / torch.iinfo(images.dtype).max


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Subtract `mean` and divide by `std`, one value for each channel, from images in [0, 1]."""
    channel_mean, channel_std = (images.new_tensor(values).view(-1, 1, 1) for values in (mean, std))
    return (images - channel_mean) / channel_std


def rotate(images: Tensor, radians: Tensor, padding_mode: str) -> Tensor:
    """Rotate each square image counter-clockwise about its centre by its angle (N,), with bilinear sampling.

    `padding_mode` is that of `torch.nn.functional.grid_sample`; it decides the pixels beyond the border.
    """
    cos, sin, zero = radians.cos(), radians.sin(), torch.zeros_like(radians)
    rows = [torch.stack([cos, -sin, zero], dim=1), torch.stack([sin, cos, zero], dim=1)]
    grid = F.affine_grid(torch.stack(rows, dim=1).to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode=padding_mode, align_corners=False)
