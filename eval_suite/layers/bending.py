"""How much the path of an augmented image bends on its way through the blocks of an encoder.

An augmentation moves an image along a path, such as from darker to brighter. Three points of it at equal
distances give two successive differences; the angle between them is the curvature (Hénaff et al. 2019,
"Perceptual straightening of natural videos", Nature Neuroscience 22). It is 0 on a straight line, and neither
a scale nor a rotation of the features changes it. The differences have the size of a visible change, because
derivatives of an image that is rotated or shifted depend on the interpolation between its pixels.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from data_pipeline.transforms.actions import turn
from data_pipeline.transforms.config import Action
from data_pipeline.transforms.hue import WEIGHTS
from eval_suite.features.images import normalise
from eval_suite.layers.blocks import Block, observe
from eval_suite.layers.quantities import BENDING_IMAGES


class Path(NamedTuple):
    """A path of images in one parameter."""

    at: Callable[[Tensor, float], Tensor]
    """Maps images (N, C, S, S) in [0, 1] and the parameter to images; nothing is clipped."""
    middle: float
    step: float
    """The three points are at `middle` and one step before and after it."""
    colour: bool = False
    """Whether images need three channels."""


def _brightness(x: Tensor, t: float) -> Tensor:
    return x * (1 + t)


def _contrast(x: Tensor, t: float) -> Tensor:
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * (1 + t)


def _saturation(x: Tensor, t: float) -> Tensor:
    grey = (x * x.new_tensor(WEIGHTS).view(1, 3, 1, 1)).sum(1, keepdim=True)
    return grey + (x - grey) * (1 + t)


def _turned(action: Action, x: Tensor, t: float) -> Tensor:
    radians = 2 * math.pi * t / x.shape[3] if action == "shift_x" else math.radians(t)
    return turn(x, [action], x.new_full((len(x), 1), radians))


PATHS = {
    "brightness": Path(_brightness, 0.0, 0.1),
    "contrast": Path(_contrast, 0.0, 0.1),
    "saturation": Path(_saturation, 0.0, 0.2, colour=True),
    "hue, 10°": Path(partial(_turned, "hue"), 0.0, 10.0, colour=True),
    # Not around 0, where pixels need no interpolation: its blur must be that of the other two points.
    "rotation, 5°": Path(partial(_turned, "rotation"), 7.5, 5.0),
    "shift, 1 pixel": Path(partial(_turned, "shift_x"), 0.0, 1.0),
}
"""The augmentations. The first three are straight lines of pixels."""
Bends = dict[str, list[dict[str, float]]]
"""For each path, a list of the pixels and then of each block: angle in degrees, its interval, and speed."""


def bends(
    encoder: nn.Module,
    blocks: list[Block],
    images: Tensor,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    batch: Callable[[Tensor], Any],
) -> Bends:
    """Follow `images` (N, C, S, S), normalised by `mean` and `std`, along each path.

    Paths of colours are left out where there are not three channels. `batch` yields images in batches on the
    encoder's device. The first entry of a path is that of the pixels, the others are those of `blocks`. An
    entry has `angle`, the median over images, its interval `low` to `high` from order statistics, and
    `speed`: half the distance between the outer points, median over images, over the root mean square
    distance of the images from their mean.
    """
    x = images[:BENDING_IMAGES]
    scale, shift = (x.new_tensor(values).view(1, -1, 1, 1) for values in (std, mean))
    pixels = x * scale + shift
    found: Bends = {}
    for name, path in PATHS.items():
        if path.colour and pixels.shape[1] != 3:
            continue
        points = [normalise(path.at(pixels, path.middle + i * path.step), mean, std) for i in (-1, 0, 1)]
        seen = [observe(encoder, blocks, batch(point)) for point in points]
        layers = [tuple(point.flatten(1).double().numpy() for point in points)]
        layers += [tuple(each[i].vectors for each in seen) for i in range(len(blocks))]
        found[name] = [_bend(*three) for three in layers]
    return found


def mean_angle(found: Bends, block: int) -> float | None:
    """Return the mean over the paths of the angle at a block, counted from 0; None if none is defined."""
    angles = [of[block + 1]["angle"] for of in found.values()]
    finite = [angle for angle in angles if math.isfinite(angle)]
    return float(np.mean(finite)) if finite else None


def beside(trained: Bends, untrained: Bends) -> list[dict[str, Any]]:
    """Return a row for each path: its name, and lists by layer for the trained and the untrained encoder."""
    return [{"path": name, "trained": of, "untrained": untrained[name]} for name, of in trained.items()]


def _bend(
    before: NDArray[np.float64], middle: NDArray[np.float64], after: NDArray[np.float64]
) -> dict[str, float]:
    """Return the angle between the two differences of three points (n, d), and the speed, over images."""
    first, second = middle - before, after - middle
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    spread = math.sqrt(float(np.square(middle - middle.mean(0)).sum(1).mean()))
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = (first * second).sum(1) / lengths
        angles = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
        speed = float(np.median(np.linalg.norm(after - before, axis=1)) / 2 / np.float64(spread))
    angles = angles[np.isfinite(angles)]
    if not len(angles):
        return {"angle": math.nan, "low": math.nan, "high": math.nan, "speed": speed}
    # Of n sorted values, the median lies between those n/2 ∓ 0.98 √n with probability 0.95.
    reach = min(0.5, 0.98 / math.sqrt(len(angles)))
    low, middle_angle, high = np.quantile(angles, [0.5 - reach, 0.5, 0.5 + reach])
    return {"angle": float(middle_angle), "low": float(low), "high": float(high), "speed": speed}


def reading(rows: list[Mapping[str, Any]]) -> str:
    """Say in a sentence along how many paths the last block is straighter than in the untrained encoder."""
    known = [(row["trained"][-1], row["untrained"][-1]) for row in rows]
    known = [(a, b) for a, b in known if None not in (a["low"], a["high"], b["low"], b["high"])]
    straighter = sum(a["high"] < b["low"] for a, b in known)
    more = sum(a["low"] > b["high"] for a, b in known)
    return (
        f"At the last block, {straighter} of {len(known)} paths bend less than in the untrained encoder, and "
        f"{more} bend more: only paths whose two intervals do not overlap are counted so."
    )
