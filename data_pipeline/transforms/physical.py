"""Crops of a stated physical size, such as 30 mm, from images whose spacing is known.

Such a crop is a square on the object. Where rows and columns of the image have different distances, it has
more pixels in one direction than in the other, and it rarely begins at a whole pixel. So it is resampled from
its exact place (`exact_crop`), and the pixels of the view have the same distance in both directions.
"""

import logging
import math
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from data_pipeline.dataset import spacing
from data_pipeline.dataset.index import Dataset
from data_pipeline.dataset.units import LENGTH, UNITS, Unit
from data_pipeline.transforms.config import ViewsConfig
from isotorus.errors import UserError, one_line

ExactBox = tuple[float, float, float, float]
"""Top, left, height and width in pixels, which need not be whole numbers."""
Spacing = tuple[float, float]
"""Distance between the rows and between the columns of an image, in the unit of the views."""

_AT_ONCE = 2**20

log = logging.getLogger(__name__)


class Square(NamedTuple):
    """The part of an image that an encoder sees in evaluation: a centred square of a physical size."""

    side: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    unit: Unit
    unscaled: Literal["refuse", "area"]


def whole_square(views: ViewsConfig) -> Square | None:
    """Return the centred square on which an encoder with these views is evaluated; None if it is the largest
    square in the image.
    """
    if views.scale_by != "spacing":
        return None
    assert views.unit is not None and views.physical_size is not None
    low, high = views.physical_size
    middle = math.sqrt(low * high) * views.whole_side / views.global_size
    return Square(views.whole_physical_size or middle, views.unit, views.unscaled)


def box(
    rng: np.random.Generator, height: int, width: int, spacing_: Spacing, sides: tuple[float, float]
) -> ExactBox:
    """Draw a square crop: the logarithm of its side is uniform in `sides`, and its place is uniform.

    In an image that is smaller than the largest side, the largest side is that of the image. The image
    must not be smaller than the smallest side.
    """
    low, high = sides
    high = min(high, height * spacing_[0], width * spacing_[1])
    share, down, right = rng.random(3).tolist()
    side = min(math.exp(math.log(low) + share * (math.log(high) - math.log(low))), high)
    h, w = min(side / spacing_[0], height), min(side / spacing_[1], width)
    return down * (height - h), right * (width - w), h, w


def is_large_enough(height: int, width: int, spacing_: Spacing, smallest: float) -> bool:
    """Return whether a square with this side fits into an image."""
    return min(height * spacing_[0], width * spacing_[1]) >= smallest * (1 - 1e-6)


def middle(height: int, width: int, square: Square, spacing_: Spacing) -> ExactBox:
    """Return the square at the middle of an image, which is never larger than the image."""
    side = min(square.side, height * spacing_[0], width * spacing_[1])
    h, w = side / spacing_[0], side / spacing_[1]
    return (height - h) / 2, (width - w) / 2, h, w


class Scales:
    """The spacing of the images of a data set, in one unit."""

    def __init__(self, dataset: Dataset, unit: Unit) -> None:
        self._table, self._unit = spacing.read(dataset), unit

    def of(self, sample: int) -> Spacing | None:
        """Return the spacing of a sample; None if it is not known."""
        if self._table is None:
            return None
        rows, columns = spacing.in_unit(self._table[sample], self._unit).tolist()
        return None if math.isnan(rows) else (rows, columns)

    def unknown(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Return which of the samples from `start` to `stop` - 1 have no known spacing."""
        return np.isnan(self._sides(start, stop)[:, 0])

    def smaller(self, dataset: Dataset, start: int, stop: int, side: float) -> NDArray[np.bool_]:
        """Return which of these samples are smaller than a side."""
        rows = dataset.rows[start:stop]
        sides = self._sides(start, stop) * np.stack([rows["height"], rows["width"]], axis=1)
        return sides.min(1) < side * (1 - 1e-6)

    def _sides(self, start: int, stop: int) -> NDArray[np.float64]:
        if self._table is None:
            return np.full((stop - start, 2), np.nan)
        return spacing.in_unit(self._table[start:stop], self._unit)


def check_views(views: ViewsConfig, datasets: Sequence[Dataset]) -> None:
    """Raise `UserError` if images cannot be cropped by their spacing, unless `views.unscaled` allows it;
    then log their number.
    """
    if views.scale_by == "spacing":
        assert views.unit is not None
        smallest = max(r.sides[0] for r in views.resolutions() if r.sides)
        for dataset in datasets:
            _check(dataset, views.unit, smallest, views.unscaled)


def check_square(square: Square | None, dataset: Dataset, *, quiet: bool = False) -> None:
    """Raise `UserError` if an encoder sees squares of a physical size and some images have no known spacing.

    With an encoder that was trained with `views.unscaled=area`, raise it only if no image has a known
    spacing; else log their number, unless `quiet`.
    """
    if square is not None:
        _check(dataset, square.unit, 0.0, square.unscaled, quiet)


def refuse_square(square: Square | None, what: str) -> None:
    """Raise `UserError` if an encoder sees squares of a physical size, and `what` does not state its
    spacing.
    """
    if square is not None and square.unscaled == "refuse":
        raise UserError(
            f"the encoder sees squares of {square.side:g} {square.unit}, and {what} state no spacing; "
            "pack them, and name the data set"
        )


def _check(dataset: Dataset, unit: Unit, smallest: float, unscaled: str, quiet: bool = False) -> None:
    """Count the images that cannot be cropped by their spacing.

    Raises `UserError` if this is true of all images, or if it is true of some and `unscaled` is "refuse";
    else logs a line.
    """
    unknown, small, first = 0, 0, -1
    scales = Scales(dataset, unit)
    for start in range(0, len(dataset), _AT_ONCE):
        stop = min(start + _AT_ONCE, len(dataset))
        without, few = scales.unknown(start, stop), scales.smaller(dataset, start, stop, smallest)
        unknown, small = unknown + int(without.sum()), small + int(few.sum())
        if first < 0 and (without | few).any():
            first = start + int(np.argmax(without | few))
    if first < 0:
        return
    total, kind = len(dataset), "length" if UNITS[unit][0] == LENGTH else "angle"
    counts = [f"{unknown} of {total} images in {dataset.path} state no spacing as {kind}"] * (unknown > 0)
    counts += [f"{small} of {total} images in {dataset.path} are smaller than {smallest:g} {unit}"] * (
        small > 0
    )
    said = f"views.scale_by=spacing: {' and '.join(counts)}, first {one_line(dataset.key(first))}"
    advice = ["pack files that state it, or a table with spacing and spacing_unit"] * (unknown > 0)
    advice += ["use a smaller views.physical_size"] * (small > 0)
    if unknown + small == total:
        raise UserError(f"{said}; {', and '.join(advice)}")
    if unscaled == "refuse":
        raise UserError(
            f"{said}; {', and '.join(advice)}, or train with views.unscaled=area, which crops them by area"
        )
    if not quiet:
        log.warning("%s; they are cropped by area", said)
