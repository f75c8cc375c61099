"""Read OME-Zarr images with zarr: folders of microscopes, of version 0.4 or 0.5.

The largest level of each image is read. Each depth at each time gives one picture, with all its channels. A
folder may hold several images, such as the fields of a plate.
"""

import itertools
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from data_pipeline.decoders.pixels import check_size
from data_pipeline.scientific_formats.picture import Picture, Reading, numbered, plain
from data_pipeline.scientific_formats.values import storable

_AXES = {2: "yx", 3: "zyx", 4: "czyx", 5: "tczyx"}
"""Axes of images whose metadata do not name them, by the number of axes."""
_DEEPEST = 4
"""Most levels of folders, below the one that is read, in which images are looked for."""
_UNITS = {"micrometer": "um", "nanometer": "nm", "millimeter": "mm", "angstrom": "angstrom"}


def read(folder: Path, reading: Reading) -> Generator[Picture]:
    """Yield the pictures of the images in a folder, each image in turn.

    Raises ValueError if there is no image or if an image has unknown axes, and whatever zarr raises for a
    damaged folder.
    """
    images = list(_images(zarr.open_group(str(folder), mode="r"), _DEEPEST))
    if not images:
        raise ValueError("a Zarr folder without an OME image")
    for number, (group, known) in enumerate(images):
        prefix = f"{numbered('s', number, len(images))}_" if len(images) > 1 else ""
        for name, picture in itertools.islice(_pictures(group, known, reading), 0, None, reading.every):
            yield picture._replace(name=f"{prefix}{name}".rstrip("_"))


def _images(group: Any, depth: int) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield the groups that hold an image, with their OME attributes; groups of labels are left out."""
    known = group.attrs.asdict()
    known = known.get("ome", known)
    if known.get("multiscales"):
        yield group, known
        return
    inner = sorted(group.groups()) if depth else []
    for name, subgroup in inner:
        if name != "labels":
            yield from _images(subgroup, depth - 1)


def _pictures(group: Any, known: dict[str, Any], reading: Reading) -> Iterator[tuple[str, Picture]]:
    """Yield the pictures of an image."""
    described = known["multiscales"][0]
    array = group[described["datasets"][0]["path"]]
    axes = [axis if isinstance(axis, str) else axis["name"] for axis in described.get("axes", [])]
    axes = axes or list(_AXES.get(array.ndim, ""))
    if len(axes) != array.ndim or axes[-2:] != ["y", "x"] or set(axes) - set("tczyx"):
        raise ValueError(f"an OME-Zarr image of axes {axes} and shape {array.shape}; expected t, c, z, y, x")
    sizes = dict(zip(axes, array.shape, strict=True))
    check_size(sizes["y"], sizes["x"], sizes.get("c", 1))
    fields = _fields(described, axes, known, reading.keep)
    outer = [axis for axis in axes if axis in "tz"]
    for place in itertools.product(*(range(sizes[axis]) for axis in outer)):
        where = dict(zip(outer, place, strict=True))
        names = [numbered(axis, i, sizes[axis]) for axis, i in where.items() if sizes[axis] > 1]
        values = np.asarray(array[tuple(where.get(axis, slice(None)) for axis in axes)])
        values = np.moveaxis(values, 0, 2) if "c" in axes else values
        yield "_".join(names), Picture("", storable(values), fields)


def _fields(
    described: dict[str, Any], axes: list[str], known: dict[str, Any], keep: tuple[str, ...]
) -> dict[str, Any]:
    """Return the distance between rows and between columns, the names of channels, and attributes to keep."""
    fields: dict[str, Any] = {name: plain(known[name]) for name in keep if name in known}
    transforms = described["datasets"][0].get("coordinateTransformations", [])
    scales = [transform["scale"] for transform in transforms if "scale" in transform]
    last = described["axes"][-1] if described.get("axes") else ""
    unit = last.get("unit") if isinstance(last, dict) else None
    if scales and unit and len(scales[0]) == len(axes):
        fields |= {"spacing": [float(s) for s in scales[0][-2:]], "spacing_unit": _UNITS.get(unit, unit)}
    names = [plain(channel.get("label")) for channel in known.get("omero", {}).get("channels", [])]
    return fields | ({"channels": names} if any(names) else {})


def field(folder: Path, name: str) -> Any:
    """Return an OME attribute of the first image by its name; None if it has none."""
    images = _images(zarr.open_group(str(folder), mode="r"), _DEEPEST)
    return next((plain(known.get(name)) for _, known in images), None)
