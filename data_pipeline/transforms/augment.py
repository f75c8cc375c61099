"""Photometric augmentation, batched on the images' device, from one small parameter vector a view.

Drawing (numpy, in the workers) is apart from applying (one pass over the batch), so the same parameters
give the same pixels on any device, to rounding: by torch in `augment_device`, on CPUs by `augment_cpu`.
Each operator is the one of the same name in `torchvision.transforms.v2.functional` on float images. With
other than 3 channels the operators on colour do nothing, and contrast is each channel's own.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from data_pipeline.transforms import augment_torch
from data_pipeline.transforms.views import Interval
from isotorus.section import Section

PARAMETERS = ("brightness", "contrast", "saturation", "hue", "grey", "blur", "solarize")
"""Columns: three factors (1 = as it is), hue shift in turns (0), 1 for grey (0), sigma in pixels
(0 = sharp), threshold from which pixels are inverted (2 = none)."""
IDENTITY = (1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 2.0)

Probability = Annotated[float, Field(ge=0, le=1)]


class AugmentConfig(Section):
    """The augmentations of the LeJEPA recipe; of colour only on images of 3 channels."""

    horizontal_flip: Probability = 0.5
    """Probability of mirroring left and right."""
    vertical_flip: Probability = 0.0
    """Probability of mirroring top and bottom; .5 suits images without an up, e.g. from microscopes."""
    jitter_probability: Probability = 0.8
    """Probability of changing brightness, contrast, saturation and hue, in this order."""
    brightness: float = Field(0.4, ge=0)
    """Factor on the pixels, uniform in 1 ± this."""
    contrast: float = Field(0.4, ge=0)
    """Factor on the distance to the image's mean grey, uniform in 1 ± this."""
    saturation: float = Field(0.2, ge=0)
    """Factor on the distance to the pixel's own grey, uniform in 1 ± this."""
    hue: float = Field(0.1, ge=0, le=0.5)
    """Turn of the colour circle, uniform in ± this; .5 reaches the complement."""
    grey_probability: Probability = 0.2
    """Probability of dropping colour."""
    blur_probability: Probability = 0.5
    """Probability of a Gaussian blur."""
    blur_sigma: Interval = (0.1, 2.0)
    """Smallest and largest standard deviation of the blur, in pixels of the view."""
    solarize_probability: Probability = 0.2
    """Probability of inverting bright pixels."""
    solarize_threshold: float = Field(0.5, ge=0, le=1)
    """Pixels from here up are inverted, on the scale where white is 1."""


def draw(rng: np.random.Generator, config: AugmentConfig) -> NDArray[np.float32]:
    """The parameters (P,) of one view, in the order of `PARAMETERS`."""
    chance, amount = rng.random(4), rng.random(5)  # always as many, so that views do not shift each other
    parameters = np.array(IDENTITY, dtype=np.float32)
    if chance[0] < config.jitter_probability:
        for column, strength in enumerate((config.brightness, config.contrast, config.saturation)):
            low = max(1 - strength, 0)
            parameters[column] = low + amount[column] * (1 + strength - low)
        parameters[3] = config.hue * (2 * amount[3] - 1)
    if chance[1] < config.grey_probability:
        parameters[4] = 1
    if chance[2] < config.blur_probability:
        low, high = config.blur_sigma
        parameters[5] = low + amount[4] * (high - low)
    if chance[3] < config.solarize_probability:
        parameters[6] = config.solarize_threshold
    return parameters


@torch.no_grad()
def apply(images: Tensor, parameters: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Augment `images` (N, C, H, W) by `parameters` (N, P) → float32 (N, C, H, W), normalised.

    `images` are uint8 or uint16, whose full scale is 1 from here on; `mean` and `std` have C numbers. The
    result is on the images' device. Leave the parameters on the CPU: what no image asks for is left out,
    and deciding that on the host costs no device synchronisation.
    """
    parameters = parameters.cpu()
    if images.device.type == "cpu":
        from data_pipeline.transforms import augment_cpu  # whose compiler takes a while to import

        return augment_cpu.apply(images, parameters, mean, std)
    return augment_torch.apply(images, parameters, mean, std)
