"""Closed paths of images: an image is rotated, shifted or recoloured until it is the same again.

All functions take float images (N, C, H, W) in [0, 1] and `turn`, the share of the path from 0 to 1. They
return the same images at 0 and at 1.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import adjust_hue

from data_pipeline.transforms.actions import Action, Border, turn
from eval_suite.features.images import rotate

Path = Callable[[Tensor, float], Tensor]


def rotation(images: Tensor, turn: float) -> Tensor:
    """Rotate square images counter-clockwise about the centre, inside the largest disc.

    Outside the disc is each channel's mean: corners that rotate would reveal the angle.
    """
    size = images.shape[-1]
    radians = images.new_full((len(images),), 2 * math.pi * turn, dtype=torch.float64)
    rotated = rotate(images, radians, "border")
    along = (torch.arange(size, device=images.device) + 0.5) * 2 / size - 1
    # The edge of the disc is two pixels wide, since a sharp one would flicker.
    disc = ((1 - torch.hypot(along[:, None], along)) * size / 4).clamp(0, 1)
    mean = images.mean((-2, -1), keepdim=True)
    return mean + disc * (rotated - mean)


def shift_x(images: Tensor, turn: float) -> Tensor:
    """Shift images to the right by whole pixels; pixels that leave come in again on the left."""
    return images.roll(round(turn * images.shape[-1]), -1)


def shift_y(images: Tensor, turn: float) -> Tensor:
    """Shift images down by whole pixels; pixels that leave come in again at the top."""
    return images.roll(round(turn * images.shape[-2]), -2)


def hue(images: Tensor, turn: float) -> Tensor:
    """Rotate the hue of RGB images in HSV space; grey pixels stay as they are."""
    return adjust_hue(images, (turn + 0.5) % 1 - 0.5)


PATHS: dict[str, Path] = {
    "rotation": rotation,
    "shift_x": shift_x,
    "shift_y": shift_y,
    "hue": hue,
}
"""All paths by their name for --paths."""
COLOUR = ("hue",)
"""Paths that need images of three channels."""


def of_actions(actions: Sequence[Action], border: Border) -> dict[str, Path]:
    """Return all paths for a head that was trained with `actions`: its own are turned as in training."""
    own = {action: partial(_turned, actions, border, place) for place, action in enumerate(actions)}
    return PATHS | own


def _turned(actions: Sequence[Action], border: Border, place: int, images: Tensor, share: float) -> Tensor:
    """Turn images by a share of a full turn of action number `place`, and not by the others."""
    angles = images.new_zeros(len(images), len(actions))
    angles[:, place] = 2 * math.pi * share
    return turn(images, actions, angles, border)
