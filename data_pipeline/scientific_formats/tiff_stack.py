"""Read TIFF stacks with tifffile: OME-TIFF, ImageJ and other files whose metadata name their axes.

Each position on the axes of depth (Z), time (T) and others gives one picture, with all its channels. A TIFF
of a single picture is not a stack: `pack` keeps its bytes.
"""

import html
import io
import itertools
import math
import re
from collections.abc import Generator, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from tifffile import TiffFile, TiffPageSeries

from data_pipeline.decoders.orientation import size_upright
from data_pipeline.decoders.pixels import check_size
from data_pipeline.decoders.tiff_pages import CHANNEL_AXES, STACKED, tag_of
from data_pipeline.scientific_formats.picture import Picture, Reading, filled, numbered, plain
from data_pipeline.scientific_formats.values import storable

_UNITS = {"µm": "um", "μm": "um", "micron": "um", "microns": "um", "\\u00B5m": "um", "pixel": ""}
"""Other spellings of units; "" for a pixel, which is not a unit of length."""
_PROJECTED, _METRE = 1, 9001
"""Codes of GeoTIFF (OGC 19-008r4): a projected map, and the metre."""


def is_stack(file: BinaryIO) -> bool:
    """Return whether a file is a TIFF whose metadata name an axis of several pictures; leaves the file at its
    start.
    """
    try:
        with TiffFile(file, name="stack.tif", _multifile=False) as tiff:
            known = tiff.is_ome or any(getattr(tiff, f"is_{kind}") for kind in STACKED)
            return known and any(_picture_axes(series) for series in _all_series(tiff))
    except Exception:  # tifffile raises nearly every kind of exception for damaged files
        return False
    finally:
        file.seek(0)


def read(file: BinaryIO, reading: Reading) -> Generator[Picture]:
    """Yield the pictures of a stack; with several series (positions of a slide), those of each in turn.

    Raises ValueError for a stack that lacks planes, and whatever tifffile raises for a damaged file.
    """
    with TiffFile(file, name="stack.tif", _multifile=False) as tiff:
        all_series = _all_series(tiff)
        for number, series in enumerate(all_series):
            prefix = f"{numbered('s', number, len(all_series))}_" if len(all_series) > 1 else ""
            fields = _fields(tiff, number, reading.keep)
            for name, values in itertools.islice(_pictures(file, series), 0, None, reading.every):
                yield Picture(f"{prefix}{name}".rstrip("_"), storable(values), fields)


def fields_of_one(data: bytes) -> dict[str, Any]:
    """Return what the metadata of a TIFF of one picture say: the distances between its rows and between its
    columns, as the image is seen, and the names of its channels; {} if they say nothing, or are damaged.
    """
    try:
        with TiffFile(io.BytesIO(data), name="one.tif", _multifile=False) as tiff:
            fields = _fields(tiff, 0, ()) | _on_the_ground(tiff) | _band_names(tiff)
            if "spacing" in fields:
                # Packing turns the image by its orientation tag, which may exchange rows and columns.
                rows, columns = fields["spacing"]
                fields["spacing"] = list(size_upright(rows, columns, tag_of(tiff.pages.first)))
            return fields
    except MemoryError:
        raise
    except Exception:  # tifffile raises nearly every kind of exception for damaged files
        return {}


def _on_the_ground(tiff: TiffFile) -> dict[str, Any]:
    """Return the distance of rows and columns of a GeoTIFF that is projected in metres; {} for any other."""
    known = tiff.geotiff_metadata or {}
    scale = known.get("ModelPixelScale")
    if not scale or int(known.get("GTModelTypeGeoKey", 0)) != _PROJECTED:
        return {}
    if int(known.get("ProjLinearUnitsGeoKey", 0)) != _METRE:
        return {}
    return _spacing(scale[1], scale[0], "m")


def _band_names(tiff: TiffFile) -> dict[str, Any]:
    """Return the descriptions of the bands, which GDAL wrote, as names; {} unless all bands have one."""
    items = re.findall(r"<Item\b([^>]*)>([^<]*)</Item>", str(tiff.pages.first.tags.valueof("GDAL_METADATA")))
    numbered_names = {}
    for attributes, text in items:
        known = dict(re.findall(r"(\w+)\s*=\s*[\"']([^\"']*)[\"']", attributes))
        if known.get("role") == "description" and known.get("sample", "").isdecimal():
            numbered_names[int(known["sample"])] = html.unescape(text).strip()
    bands = tiff.pages.first.samplesperpixel
    names = [numbered_names.get(band, "") for band in range(bands)]
    return {"channels": names} if all(names) else {}


def _all_series(tiff: TiffFile) -> list[TiffPageSeries]:
    """Return the images of an OME-TIFF, or the only one of another TIFF; raise ValueError for several."""
    if not tiff.is_ome and len(tiff.series) > 1:
        raise ValueError(f"a TIFF of {len(tiff.series)} series; write each to a file of its own")
    return list(tiff.series)


def _picture_axes(series: TiffPageSeries) -> dict[str, int]:
    """Return the axes of several pictures with their lengths."""
    sizes = zip(series.axes, series.shape, strict=True)
    return {axis: size for axis, size in sizes if axis not in f"YX{CHANNEL_AXES}" and size > 1}


def _pictures(file: BinaryIO, series: TiffPageSeries) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield name and values (H, W, C) of each picture of a series; one plane of each channel is in memory."""
    sizes = dict(zip(series.axes, series.shape, strict=True))
    inner = series.axes[-series.keyframe.ndim :]
    outer = series.axes[: -series.keyframe.ndim]
    if not set("YX") <= set(inner) <= set("YX" + CHANNEL_AXES):
        raise ValueError(f"a TIFF stack of axes {series.axes}, whose pages are no pictures")
    check_size(sizes["Y"], sizes["X"], math.prod(sizes[axis] for axis in series.axes if axis in CHANNEL_AXES))
    plane = _planes(file, series, len(outer))
    order = [inner.index("Y"), inner.index("X"), *(i for i, axis in enumerate(inner) if axis not in "YX")]
    for where in _places(sizes, [axis for axis in outer if axis not in CHANNEL_AXES]):
        names = [numbered(axis.lower(), i, sizes[axis]) for axis, i in where.items() if sizes[axis] > 1]
        each = []
        for channel in _places(sizes, [axis for axis in outer if axis in CHANNEL_AXES]):
            values = plane(tuple((where | channel)[axis] for axis in outer))
            each.append(values.transpose(order).reshape(sizes["Y"], sizes["X"], -1))
        yield "_".join(names), np.concatenate(each, axis=2)


def _places(sizes: Mapping[str, int], axes: list[str]) -> Iterator[dict[str, int]]:
    """Yield all places on some axes, the last axis fastest, as numbers by axis."""
    for place in itertools.product(*(range(sizes[axis]) for axis in axes)):
        yield dict(zip(axes, place, strict=True))


def _planes(file: BinaryIO, series: TiffPageSeries, outer: int) -> Any:
    """Return a function from the place on the `outer` axes to the plane that is stored there."""
    shape = series.shape[:outer]
    if series.dataoffset is not None:
        assert series.keyframe.dtype is not None
        kind = series.keyframe.dtype.newbyteorder(series.keyframe.parent.byteorder)
        return np.memmap(file, kind, "r", series.dataoffset, series.shape).__getitem__
    if len(series) != math.prod(shape):
        raise ValueError(f"a TIFF stack of {math.prod(shape)} planes that holds {len(series)}")

    def plane(place: tuple[int, ...]) -> NDArray[Any]:
        page = series[int(np.ravel_multi_index(place, shape)) if place else 0]
        if page is None:
            raise ValueError("a TIFF stack that lacks a plane")
        values: NDArray[Any] = page.asarray(maxworkers=1)
        return values

    return plane


def _fields(tiff: TiffFile, number: int, keep: tuple[str, ...]) -> dict[str, Any]:
    """Return what the metadata say about a series: the distance of rows and columns, the names of channels,
    and the tags or OME attributes to keep.
    """
    fields: dict[str, Any] = {}
    if tiff.is_ome:
        images = re.findall(r"<(?:\w+:)?Image\b.*?</(?:\w+:)?Image>", tiff.ome_metadata or "", re.DOTALL)
        image = images[number] if number < len(images) else ""
        pixels = _attributes(image, "Pixels")
        fields |= _spacing(
            pixels.get("PhysicalSizeY"), pixels.get("PhysicalSizeX"), pixels.get("PhysicalSizeYUnit", "µm")
        )
        names = re.findall(r"<(?:\w+:)?Channel\b[^>]*?\bName\s*=\s*[\"']([^\"']*)", image)
        fields["channels"] = names or None
    elif tiff.imagej_metadata:
        tags = tiff.pages.first.tags
        y, x = (tags.valueof(name) for name in ("YResolution", "XResolution"))
        rows, columns = (value[1] / value[0] if value and value[0] else None for value in (y, x))
        fields |= _spacing(rows, columns, str(tiff.imagej_metadata.get("unit", "")))
    for name in keep:
        value = tiff.pages.first.tags.valueof(name)
        if value is None:
            found = re.search(rf"\b{re.escape(name)}\s*=\s*[\"']([^\"']*)", tiff.ome_metadata or "")
            value = found[1] if found else None
        fields[name] = plain(value)
    return filled(fields)


def _attributes(xml: str, element: str) -> Mapping[str, str]:
    """Return the attributes of the first element of a name; {} if there is none."""
    found = re.search(rf"<(?:\w+:)?{element}\b([^>]*)>", xml)
    return dict(re.findall(r"(\w+)\s*=\s*[\"']([^\"']*)[\"']", found[1])) if found else {}


def _spacing(rows: Any, columns: Any, unit: str) -> dict[str, Any]:
    """Return the distance between rows and between columns, if both are numbers with a unit."""
    unit = _UNITS.get(unit, unit)
    try:
        spacing = [float(rows), float(columns)]
    except (TypeError, ValueError):
        return {}
    if not unit or not all(0 < each < math.inf for each in spacing):
        return {}
    return {"spacing": [round(each, 9) for each in spacing], "spacing_unit": unit}
