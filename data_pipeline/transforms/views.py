"""The geometry of views: which part of an image is cropped, to what size, how it is mirrored and turned."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.decoders.decode import Shrink, decode, largest_shrink, size
from data_pipeline.decoders.intensity import NONE, Intensity
from data_pipeline.decoders.pixels import NEWEST_RULES, PixelRules, Pixels
from data_pipeline.transforms import physical
from data_pipeline.transforms.actions import is_periodic, moves
from data_pipeline.transforms.config import ACTIONS, Resolution, ViewsConfig
from data_pipeline.transforms.physical import ExactBox, Spacing, Square

Box = tuple[int, int, int, int]
"""Top, left, height and width, in pixels."""

_SHRINK_MARGIN = 2  # a crop of the smaller JPEG has at least 2 pixels per pixel of its view


class Crop(NamedTuple):
    """The part of an image that a view shows, and whether it is mirrored left to right and top to bottom."""

    box: ExactBox
    """Whole numbers, unless it has a physical size."""
    mirrored: tuple[bool, bool]


def draw(
    rng: np.random.Generator,
    height: int,
    width: int,
    config: ViewsConfig,
    flips: tuple[float, float],
    spacing: Spacing | None = None,
) -> list[list[Crop]]:
    """Draw random crops of an image of this size: a list of crops for each of `config.resolutions()`.

    With a `spacing` they are those of a physical size.

    `flips` are the probabilities of a horizontal and of a vertical flip. All turned views of an image are
    mirrored alike where an action moves pixels: an image and its mirror image have no common pose, so nothing
    could be learned from a pair of them.
    """
    resolutions = config.resolutions()
    crops = [
        [
            Crop(
                _box(rng, height, width, resolution, config.ratio, spacing),
                (rng.random() < flips[0], rng.random() < flips[1]),
            )
            for _ in range(resolution.views)
        ]
        for resolution in resolutions
    ]
    if moves(config.actions):
        turned = [number for number, resolution in enumerate(resolutions) if resolution.turned]
        mirrored = crops[turned[0]][0].mirrored
        for number in turned:
            crops[number] = [crop._replace(mirrored=mirrored) for crop in crops[number]]
    return crops


def _box(
    rng: np.random.Generator,
    height: int,
    width: int,
    resolution: Resolution,
    ratio: tuple[float, float],
    spacing: Spacing | None,
) -> ExactBox:
    """Draw the part of an image that one view shows."""
    if spacing is None or resolution.sides is None:
        return crop_box(rng, height, width, resolution.scale, ratio)
    return physical.box(rng, height, width, spacing, resolution.sides)


def scaled(height: int, width: int, config: ViewsConfig, spacing: Spacing | None) -> Spacing | None:
    """Return the `spacing` of an image if its crops are of a physical size; None if they are shares of its
    area, because the spacing is not known or the image is smaller than a crop.
    """
    smallest = max((r.sides[0] for r in config.resolutions() if r.sides), default=None)
    if spacing is None or smallest is None:
        return None
    return spacing if physical.is_large_enough(height, width, spacing, smallest) else None


def draw_angles(rng: np.random.Generator, config: ViewsConfig) -> list[NDArray[np.float32]]:
    """Draw the angles of the actions, uniform on [0, 2π): (views, m) for each of `config.resolutions()`.

    Views that are not turned have zeros. Without actions the list is empty.
    """
    if not config.actions:
        return []
    # Every action has its own draw, so that an action does not change the angles of the others.
    columns = [ACTIONS.index(action) for action in config.actions]
    full = np.float32(2 * math.pi)
    return [
        full * rng.random((r.views, len(ACTIONS)), dtype=np.float32)[:, columns]
        if r.turned
        else np.zeros((r.views, len(columns)), np.float32)
        for r in config.resolutions()
    ]


def turn_by_quarters(
    rng: np.random.Generator, views: Sequence[Tensor], config: ViewsConfig, probability: float
) -> None:
    """Turn some views (views, C, size, size) of each resolution by quarters of a full turn, in place."""
    for resolution, pixels in zip(config.resolutions(), views, strict=True):
        chance, quarters = rng.random(resolution.views), rng.integers(1, 4, resolution.views)
        if resolution.turned:
            continue
        for view, turned, quarter in zip(pixels, chance, quarters.tolist(), strict=True):
            if turned < probability:
                view.copy_(view.rot90(quarter, (1, 2)))


def crop_box(
    rng: np.random.Generator,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Box:
    """Draw a random crop: area uniform in `scale`, logarithm of the aspect ratio uniform in `ratio`, place
    uniform.

    As in torchvision's RandomResizedCrop (Szegedy et al. 2014, arXiv:1409.4842), a crop that does not fit
    into the image is drawn again; after ten such draws the result is the largest centred crop with an allowed
    aspect ratio.
    """
    lowest, highest = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area, aspect, down, right = rng.random(4).tolist()
        area = height * width * (scale[0] + area * (scale[1] - scale[0]))
        aspect = math.exp(lowest + aspect * (highest - lowest))
        w, h = max(round(math.sqrt(area * aspect)), 1), max(round(math.sqrt(area / aspect)), 1)
        if w <= width and h <= height:
            return int(down * (height - h + 1)), int(right * (width - w + 1)), h, w
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, max(round(height * aspect), 1)), min(height, max(round(width / aspect), 1))
    return (height - h) // 2, (width - w) // 2, h, w


def cut(
    rng: np.random.Generator,
    data: bytes,
    config: ViewsConfig,
    flips: tuple[float, float],
    out: Sequence[Tensor],
    rules: PixelRules = NEWEST_RULES,
    angles: Sequence[NDArray[np.float32]] = (),
    intensity: Intensity = NONE,
    spacing: Spacing | None = None,
    rotations: Sequence[NDArray[np.float32]] = (),
) -> None:
    """Decode the image file `data` and write random views of it, cropped as by `draw`, into `out`.

    `out` has a tensor (views, C, size, size) for each of `config.resolutions()`. C is the number of channels
    to decode to, and the tensor's type, uint8 or uint16, the depth. `rules` and `intensity` are those of the
    data set, and `angles` those of `draw_angles`. `spacing` is that of the image in `config.unit`, None
    if it is not known. `rotations` (views,) for each resolution are angles by which views that no action
    turns are rotated counterclockwise, in radians. The pixels depend on the arguments alone.
    Raises ValueError, as `decode` does, if `data` is not a complete image.
    """
    height, width = size(data, rules)
    spacing = scaled(height, width, config, spacing)
    crops = draw(rng, height, width, config, flips, spacing)
    depth: Literal[8, 16] = 8 if out[0].dtype == torch.uint8 else 16
    shrink = _shrink(crops, config)
    image = decode(data, out[0].shape[1], depth, shrink, rules, intensity)
    if image.shape[:2] == (height, width):  # only some formats can be decoded smaller
        shrink = 1
    for number, (resolution, views, chosen) in enumerate(zip(config.resolutions(), out, crops, strict=True)):
        for i, (view, crop) in enumerate(zip(views, chosen, strict=True)):
            box = _shrunk(crop.box, shrink)
            exact = box if spacing is None else _exactly_shrunk(crop.box, shrink)
            if resolution.turned and moves(config.actions):
                view.copy_(_moved(image, exact, crop.mirrored, config, resolution.size, angles[number][i]))
                continue
            rotation = float(rotations[number][i]) if len(rotations) and not resolution.turned else 0.0
            if spacing is not None or rotation:
                view.copy_(_resampled(image, exact, crop.mirrored, resolution.size, rotation))
                continue
            pixels = resize(image, box, resolution.size)
            mirrored = [dim for dim, flip in zip((2, 1), crop.mirrored, strict=True) if flip]
            view.copy_(pixels.flip(mirrored) if mirrored else pixels)


def _resampled(
    image: Pixels, box: ExactBox, mirrored: tuple[bool, bool], size: int, rotation: float = 0.0
) -> Tensor:
    """Return the crop `box` of `image`, which need not be of whole pixels, mirrored and rotated."""
    from data_pipeline.transforms.exact_crop import exact_crop  # numba is slow to import
    from data_pipeline.transforms.turned_crop import turned_crop

    if rotation:
        return turned_crop(image, box, mirrored, size, rotation=rotation)
    return exact_crop(image, box, mirrored, size)


def _moved(
    image: Pixels,
    box: ExactBox,
    mirrored: tuple[bool, bool],
    config: ViewsConfig,
    size: int,
    angles: NDArray[np.float32],
) -> Tensor:
    """Return the crop `box` of `image`, mirrored, rotated and shifted by the angles (m,) of the actions."""
    from data_pipeline.transforms.turned_crop import turned_crop  # numba is slow to import

    angle = dict(zip(config.actions, angles.tolist(), strict=True))
    return turned_crop(
        image,
        box,
        mirrored,
        size,
        rotation=angle.get("rotation", 0.0),
        shift=(angle.get("shift_x", 0.0), angle.get("shift_y", 0.0)),
        periodic=is_periodic(config.actions),
        disc="rotation" in angle and config.border == "disc",
    )


def _shrink(crops: list[list[Crop]], config: ViewsConfig) -> Shrink:
    """Return by how much smaller a JPEG may be decoded, so that every view still has enough pixels."""
    pixels = min(
        min(crop.box[2:]) / resolution.size
        for resolution, chosen in zip(config.resolutions(), crops, strict=True)
        for crop in chosen
    )
    return largest_shrink(pixels / _SHRINK_MARGIN)


def _exactly_shrunk(box: ExactBox, factor: int) -> ExactBox:
    """Return the box in an image that is smaller by `factor`."""
    top, left, height, width = box
    return top / factor, left / factor, height / factor, width / factor


def _shrunk(box: ExactBox, factor: int) -> Box:
    """Return the box in an image that is smaller by `factor`, rounded to whole pixels."""
    top, left, height, width = box
    y, x = round(top / factor), round(left / factor)
    return y, x, round((top + height) / factor) - y, round((left + width) / factor) - x


def resize(image: Pixels, box: Box, size: int) -> Tensor:
    """Crop `box` from `image` (H, W, C) and resize it to (C, size, size), bicubic and antialiased; the
    type stays.
    """
    top, left, height, width = box
    pixels = image[top : top + height, left : left + width]
    if not pixels.size:  # under pixel rules 1, crops of a turned TIFF are drawn for its stored size
        raise ValueError(
            "a crop outside the image, a TIFF packed before these were cropped as seen; pack again"
        )
    deep = pixels.dtype == np.uint16
    # The memory layout stays (H, W, C), which is three times as fast as (C, H, W) and as Pillow.
    x = torch.from_numpy(pixels.astype(np.float32) if deep else pixels).permute(2, 0, 1).unsqueeze(0)
    x = F.interpolate(x, size=(size, size), mode="bicubic", antialias=True).squeeze(0)
    return x.round_().clamp_(0, 65_535).to(torch.uint16) if deep else x


def center_view(
    image: Pixels, size: int, square: Square | None = None, spacing: Spacing | None = None
) -> Tensor:
    """Resize the largest centred square of `image` (H, W, C) to (C, size, size), for evaluation.

    With a `square` of a physical size, it is that one, if the spacing of the image is known in its unit.
    """
    height, width = image.shape[:2]
    if square is not None and spacing is not None:
        box = physical.middle(height, width, square, spacing)
        return _resampled(image, box, (False, False), size)
    side = min(height, width)
    return resize(image, ((height - side) // 2, (width - side) // 2, side, side), size)


def center_mask(
    mask: NDArray[np.uint8], size: int, square: Square | None = None, spacing: Spacing | None = None
) -> NDArray[np.uint8]:
    """Crop a mask (H, W) as `center_view` does its image; resize it to (size, size) by nearest neighbours."""
    height, width = mask.shape
    if square is not None and spacing is not None:
        return _nearest(mask, physical.middle(height, width, square, spacing), size)
    side = min(height, width)
    return _nearest(mask, ((height - side) // 2, (width - side) // 2, side, side), size)


def cut_masks(
    rng: np.random.Generator,
    mask: NDArray[np.uint8],
    config: ViewsConfig,
    flips: tuple[float, float],
    out: Sequence[Tensor],
    spacing: Spacing | None = None,
) -> None:
    """Write the parts of a mask (H, W) that views of its image show into `out`, by nearest neighbours.

    With a generator in the same state and the same arguments as `cut`, the parts are those of its views, as
    far as these are not rotated. `out` has a tensor (views, size, size) for each of `config.resolutions()`.
    """
    height, width = mask.shape
    spacing = scaled(height, width, config, spacing)
    crops = draw(rng, height, width, config, flips, spacing)
    for resolution, views, chosen in zip(config.resolutions(), out, crops, strict=True):
        for view, crop in zip(views, chosen, strict=True):
            mirrored = [dim for dim, flip in zip((1, 0), crop.mirrored, strict=True) if flip]
            view.copy_(torch.from_numpy(_nearest(mask, crop.box, resolution.size)).flip(mirrored))


def _nearest(mask: NDArray[np.uint8], box: ExactBox, size: int) -> NDArray[np.uint8]:
    """Crop `box` from a mask (H, W), and resize it to (size, size) by nearest neighbours."""
    middles = (np.arange(size) + 0.5) / size
    rows, columns = (
        np.minimum((start + middles * length).astype(int), most - 1)
        for start, length, most in zip(box[:2], box[2:], mask.shape, strict=True)
    )
    return mask[rows[:, None], columns]
