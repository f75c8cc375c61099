"""Closed paths of images: an image turned, moved or coloured once round, at any share of the way.

All take float images (N, C, H, W) in [0, 1] and the share of a turn; at 0 and at 1 they give the same.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import adjust_hue

Path = Callable[[Tensor, float], Tensor]


def rotation(images: Tensor, turn: float) -> Tensor:
    """Counter-clockwise about the centre, bilinear, inside the inscribed disc; around it the image's mean.

    Without the disc the square's corners would turn too, and an encoder could see those.
    """
    size = images.shape[-1]
    cos, sin = math.cos(2 * math.pi * turn), math.sin(2 * math.pi * turn)
    matrix = images.new_tensor([[cos, -sin, 0], [sin, cos, 0]]).expand(len(images), 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    turned = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    along = (torch.arange(size, device=images.device) + 0.5) * 2 / size - 1
    # An edge two pixels wide: a sharp one would flicker.
    disc = ((1 - torch.hypot(along[:, None], along)) * size / 4).clamp(0, 1)
    mean = images.mean((-2, -1), keepdim=True)
    return mean + disc * (turned - mean)


def translation_x(images: Tensor, turn: float) -> Tensor:
    """To the right by whole pixels; what leaves comes in on the left."""
    return images.roll(round(turn * images.shape[-1]), -1)


def translation_y(images: Tensor, turn: float) -> Tensor:
    """Downwards by whole pixels; what leaves comes in at the top."""
    return images.roll(round(turn * images.shape[-2]), -2)


def hue(images: Tensor, turn: float) -> Tensor:
    """The colours' hue in HSV space, of RGB images; grey stays grey."""
    return adjust_hue(images, (turn + 0.5) % 1 - 0.5)


PATHS: dict[str, Path] = {
    "rotation": rotation,
    "translation_x": translation_x,
    "translation_y": translation_y,
    "hue": hue,
}
COLOUR = ("hue",)
"""Those that need three channels."""
