"""Read whole-slide images with tiffslide: the tiles of a grid, at one magnification, that show tissue.

A tile is cut where the grid lies in the largest level, and scaled from the level that is next larger. A
pixel of the smallest level is tissue if its largest and smallest of red, green and blue differ by at least 15
of 255. Glass and most dirt are grey, so they do not count as tissue; the marks of a pen do.
"""

import itertools
from collections.abc import Generator
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tiffslide import TiffSlide

from data_pipeline.decoders.pixels import check_size
from data_pipeline.scientific_formats.picture import Picture, Reading, filled, numbered, plain

_COLOURED = 15
_LARGEST_OVERVIEW = 50_000_000
"""Most pixels of a level in which tissue is looked for."""


def read(file: BinaryIO, reading: Reading) -> Generator[Picture]:
    """Yield the tiles of a slide that show tissue, row by row.

    Raises ValueError if the slide does not say its resolution, if its largest level is too coarse for
    `reading.mpp`, if it has no small level, or if no tile shows enough tissue; and whatever tiffslide raises
    for a damaged file.
    """
    with _opened(file) as slide:
        step = reading.mpp / _resolution(slide)
        if step < 0.95:
            raise ValueError(
                f"a slide of {reading.mpp / step:.3g} µm a pixel, too coarse for --mpp {reading.mpp:g}"
            )
        check_size(reading.tile, reading.tile, 3)
        side = reading.tile * step
        columns, rows = (int(length / side + 1e-6) for length in slide.dimensions)
        level = slide.get_best_level_for_downsample(step * 1.01)
        inner = max(round(side / slide.level_downsamples[level]), 1)
        fields = _fields(slide, reading)
        shown = np.argwhere(_tissue(slide, rows, columns, side) >= reading.tissue).tolist()
        if not shown:
            raise ValueError(f"a slide without a tile of at least {reading.tissue:.0%} tissue")
        for row, column in itertools.islice(shown, 0, None, reading.every):
            corner = (round(column * side), round(row * side))
            values = slide.read_region(corner, level, (inner, inner), as_array=True)[..., :3]
            if inner != reading.tile:
                size = (reading.tile, reading.tile)
                values = np.asarray(Image.fromarray(values).resize(size, Image.Resampling.LANCZOS))
            name = f"{numbered('x', column, columns)}_{numbered('y', row, rows)}"
            yield Picture(name, np.ascontiguousarray(values), fields)


def _opened(file: BinaryIO) -> TiffSlide:
    """Return the slide in an open file."""
    return TiffSlide(cast(Any, file), tifffile_options={"name": "slide"})


def _resolution(slide: TiffSlide) -> float:
    """Return the µm a pixel of the largest level; raise ValueError if the slide does not say it."""
    value = slide.properties.get("tiffslide.mpp-x")
    if not isinstance(value, int | float) or not value > 0:
        raise ValueError("a slide that does not say how many µm a pixel is")
    return float(value)


def _tissue(slide: TiffSlide, rows: int, columns: int, side: float) -> NDArray[np.float64]:
    """Return the share of each tile (rows, columns) that is tissue, from the smallest level."""
    level = slide.level_count - 1
    width, height = slide.level_dimensions[level]
    if width * height > _LARGEST_OVERVIEW:
        raise ValueError(
            f"a slide whose smallest level has {width} × {height} pixels; write it with a pyramid"
        )
    overview = slide.read_region((0, 0), level, (width, height), as_array=True)[..., :3].astype(np.int16)
    coloured = (overview.max(axis=2) - overview.min(axis=2) >= _COLOURED).astype(np.float64)
    # Sums over rectangles are quick for any tile, also if its side is not a whole number of overview pixels.
    sums = np.pad(coloured.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    scale = slide.level_downsamples[level]
    y = np.rint(np.arange(rows + 1) * side / scale).astype(int).clip(max=height)
    x = np.rint(np.arange(columns + 1) * side / scale).astype(int).clip(max=width)
    inside = (
        sums[y[1:, None], x[1:]]
        - sums[y[:-1, None], x[1:]]
        - sums[y[1:, None], x[:-1]]
        + sums[y[:-1, None], x[:-1]]
    )
    area = np.diff(y)[:, None] * np.diff(x)
    return inside / np.maximum(area, 1)


def _fields(slide: TiffSlide, reading: Reading) -> dict[str, Any]:
    """Return what the slide says about its tiles, and the properties to keep."""
    fields = {
        "spacing": [reading.mpp, reading.mpp],
        "spacing_unit": "um",
        "device": plain(slide.properties.get("tiffslide.vendor")),
        "magnification": plain(slide.properties.get("tiffslide.objective-power")),
    }
    fields |= {name: plain(slide.properties.get(name)) for name in reading.keep}
    return filled(fields)


def field(file: BinaryIO, name: str) -> Any:
    """Return a property of the slide by its name, such as aperio.ImageID; None if there is none."""
    with _opened(file) as slide:
        return plain(slide.properties.get(name))
