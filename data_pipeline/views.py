"""Geometry of the views: which part of an image is seen, at what size, and mirrored or not."""

import math
from typing import Annotated, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resized_crop

Box = tuple[int, int, int, int]
"""Top, left, height, width, in pixels."""


def _ascending(interval: tuple[float, float]) -> tuple[float, float]:
    if not 0 < interval[0] <= interval[1]:
        raise ValueError(f"expected 0 < low <= high, got {interval[0]}, {interval[1]}")
    return interval


def _share(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[1] > 1:
        raise ValueError(f"a crop holds at most the whole image (1.0), got {interval[1]}")
    return interval


class Resolution(NamedTuple):
    """How the views of one size are cut."""

    views: int
    size: int
    scale: tuple[float, float]


Interval = Annotated[tuple[float, float], AfterValidator(_ascending)]
Scale = Annotated[Interval, AfterValidator(_share)]


class ViewsConfig(BaseModel):
    """Multi-crop (Caron et al. 2020, arXiv:2006.09882) with LeJEPA's published sizes and scales."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True)

    global_views: int = Field(2, ge=1)
    """Large crops of an image; the prediction target is their mean."""
    global_size: int = Field(224, ge=1)
    """Side of a global view in pixels."""
    global_scale: Scale = (0.3, 1.0)
    """Smallest and largest share of the image's area in a global view."""
    local_views: int = Field(6, ge=0)
    """Small crops of an image."""
    local_size: int = Field(98, ge=1)
    """Side of a local view in pixels."""
    local_scale: Scale = (0.05, 0.3)
    """Smallest and largest share of the image's area in a local view."""
    ratio: Interval = (3 / 4, 4 / 3)
    """Narrowest and widest crop, as width over height."""

    def resolutions(self) -> list[Resolution]:
        """The global views, then the local ones if there are any."""
        resolutions = [
            Resolution(self.global_views, self.global_size, self.global_scale),
            Resolution(self.local_views, self.local_size, self.local_scale),
        ]
        return [resolution for resolution in resolutions if resolution.views]


def crop_box(
    rng: np.random.Generator,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Box:
    """A random crop: area uniform in `scale`, log aspect uniform in `ratio`, place uniform.

    As in Szegedy et al. 2014 (arXiv:1409.4842) and torchvision's RandomResizedCrop: crops that do not
    fit are drawn again, and after ten of them the largest centred crop of an allowed aspect is taken.
    """
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = max(round(math.sqrt(area * aspect)), 1), max(round(math.sqrt(area / aspect)), 1)
        if w <= width and h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, max(round(height * aspect), 1)), min(height, max(round(width / aspect), 1))
    return (height - h) // 2, (width - w) // 2, h, w


def resize(image: NDArray[np.uint8], box: Box, size: int) -> Tensor:
    """The box of `image` (H, W, C) as uint8 (C, size, size), bicubic and antialiased."""
    # torchvision on (H, W, C) memory resizes three times as fast as Pillow, and as (C, H, W) memory.
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    return resized_crop(pixels, *box, [size, size], InterpolationMode.BICUBIC, antialias=True)


def random_view(
    rng: np.random.Generator,
    image: NDArray[np.uint8],
    resolution: Resolution,
    ratio: tuple[float, float],
    flips: tuple[float, float],
) -> Tensor:
    """A random crop of `image` (H, W, C), resized to uint8 (C, size, size), perhaps mirrored.

    `flips` are the probabilities of a horizontal and a vertical flip.
    """
    height, width = image.shape[:2]
    view = resize(image, crop_box(rng, height, width, resolution.scale, ratio), resolution.size)
    mirrored = [dim for dim, probability in zip((2, 1), flips, strict=True) if rng.random() < probability]
    return view.flip(mirrored) if mirrored else view


def center_view(image: NDArray[np.uint8], size: int) -> Tensor:
    """The largest centred square of `image` (H, W, C) as uint8 (C, size, size), for evaluation."""
    height, width = image.shape[:2]
    side = min(height, width)
    return resize(image, ((height - side) // 2, (width - side) // 2, side, side), size)
