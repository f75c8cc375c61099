"""Photometric augmentation: colour, blur, noise and solarization, applied to a batch on its device.

Parameters are drawn in the loader's workers with numpy, one small vector for each view. They are applied in
one pass over the batch, with torch on GPUs (`augment_torch`) and with numba on CPUs (`augment_cpu`); the same
parameters give the same pixels on any device, except for rounding. Operators that torchvision also has give
the results of `torchvision.transforms.v2.functional` on float images. If images do not have 3 channels, or
have channels with names, saturation, hue, grey and turn do nothing, and contrast is computed for each channel
by itself.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.transforms import augment_torch
from data_pipeline.transforms.columns import (
    BLUR,
    BRIGHTNESS,
    CONTRAST,
    DROP,
    GAMMA,
    GREY,
    HUE,
    IDENTITY,
    KEY,
    NOISE,
    SATURATION,
    SHOT,
    SHUFFLE,
    SOLARIZE,
    TURN,
)
from data_pipeline.transforms.config import AugmentConfig
from isotorus.device import numbers, to_device


def draw(rng: np.random.Generator, config: AugmentConfig) -> NDArray[np.float32]:
    """Return the parameters (P,) of one view, in the order of `columns.PARAMETERS`."""
    # Always the same number of draws, so that a setting does not change the others.
    chance, amount = rng.random(4), rng.random(5)
    parameters = np.array(IDENTITY, dtype=np.float32)
    if chance[0] < config.jitter_probability:
        factors = (BRIGHTNESS, CONTRAST, SATURATION)
        strengths = (config.brightness, config.contrast, config.saturation)
        for column, strength, share in zip(factors, strengths, amount[:3], strict=True):
            low = max(1 - strength, 0)
            parameters[column] = low + share * (1 + strength - low)
        parameters[HUE] = config.hue * (2 * amount[3] - 1)
    if chance[1] < config.grey_probability:
        parameters[GREY] = 1
    if chance[2] < config.blur_probability:
        low, high = config.blur_sigma
        parameters[BLUR] = low + amount[4] * (high - low)
    if chance[3] < config.solarize_probability:
        parameters[SOLARIZE] = config.solarize_threshold
    return parameters


def draw_instrument(
    rng: np.random.Generator, rows: NDArray[np.float32], config: AugmentConfig, channels: Sequence[int]
) -> None:
    """Draw the effects of instruments on the views in `rows` (views, P): power, noise, a dropped channel, and
    the order of the channels. `channels` are the indices of the channels that the image has.

    `rng` must not be the generator of `draw`, so that the draws of `draw` do not depend on these operators.
    """
    chance, amount = rng.random((len(rows), 3)), rng.random((len(rows), 5))
    # Drawn after the others, so that the others get the same numbers as before this operator existed.
    chance = np.column_stack([chance, rng.random(len(rows))])
    order = rng.random(len(rows))
    power, noisy, dropped, shuffled = (chance < np.array(probabilities(config))).T
    low, high = np.log(config.gamma)
    rows[power, GAMMA] = np.exp(low + amount[power, 0] * (high - low))
    rows[noisy, NOISE] = amount[noisy, 1] * config.noise
    rows[noisy, SHOT] = amount[noisy, 2] * config.shot_noise
    rows[:, KEY] = np.floor(amount[:, 3] * 2**24)
    if len(channels) > 1:
        number = np.floor(amount[dropped, 4] * len(channels)).astype(int)
        rows[dropped, DROP] = 1 + np.array(channels)[number]
        rows[shuffled, SHUFFLE] = 1 + np.floor(order[shuffled] * (2**24 - 1))


def draw_rotations(rng: np.random.Generator, views: int, config: AugmentConfig) -> NDArray[np.float32]:
    """Draw the angles (views,) by which views are rotated counterclockwise, in radians; 0 for most."""
    chance, share = rng.random((2, views))
    angles = math.radians(config.rotation) * (2 * share - 1)
    return np.where(chance < config.rotation_probability, angles, 0).astype(np.float32)


def probabilities(config: AugmentConfig) -> tuple[float, float, float, float]:
    """Return the probabilities of what `draw_instrument` draws."""
    return (
        config.gamma_probability,
        config.noise_probability,
        config.channel_drop_probability,
        config.channel_shuffle_probability,
    )


def turn_hue(parameters: NDArray[np.float32], angles: NDArray[np.float32]) -> None:
    """Set the parameters (views, P) of views whose hue an action turns by `angles` (views,), in radians.

    Operators that do not commute with the turn, or that remove what it turns, are switched off.
    """
    for column in (HUE, GREY, SOLARIZE, SHUFFLE):
        parameters[:, column] = IDENTITY[column]
    parameters[:, TURN] = angles


@torch.no_grad()
def apply(
    images: Tensor,
    parameters: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    present: Tensor | None = None,
) -> Tensor:
    """Augment `images` (N, C, H, W) with `parameters` (N, P), and return normalised float32 (N, C, H, W).

    `images` are uint8 or uint16, and their largest value counts as 1; `mean` and `std` have C numbers on that
    scale. With `present`, bool (n, C) on the CPU, each channel is treated by itself, and channels that an
    image lacks become 0; N is a multiple of n, and row i mod n of `present` belongs to image i. The result is
    on the device of the images. Keep the parameters on the CPU: operators that no image needs are skipped,
    and deciding this on the CPU needs no synchronisation with the device.
    """
    parameters, colours = parameters.cpu(), present is None and images.shape[1] == 3
    if images.device.type == "cpu":
        from data_pipeline.transforms import augment_cpu  # numba is slow to import

        augmented = augment_cpu.apply(images, parameters, mean, std, colours)
    else:
        augmented = augment_torch.apply(images, parameters, mean, std, colours)
    if present is not None:
        mask = to_device(present.float(), images.device)[:, :, None, None]
        return augmented.unflatten(0, (-1, len(present))).mul_(mask).flatten(0, 1)
    return augment_torch.shuffle(augmented, parameters)


def normalised(
    images: Tensor, mean: Sequence[float], std: Sequence[float], present: Tensor | None = None
) -> Tensor:
    """Return images (n, C, H, W), whose values are in [0, 1], normalised by C means and deviations.

    `present` is a factor (C, 1, 1) or (n, C, 1, 1), which is 0 for channels that an image lacks and else 1.
    """
    center, scale = (numbers(images.device, *values)[:, None, None] for values in (mean, std))
    normal = (images - center) / scale
    return normal if present is None else normal * present
