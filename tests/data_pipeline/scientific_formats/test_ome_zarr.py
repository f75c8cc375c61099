"""OME-Zarr folders are packed picture by picture, and known again as files are."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from data_pipeline.__main__ import main
from data_pipeline.dataset.index import Dataset
from data_pipeline.scientific_formats import formats
from data_pipeline.scientific_formats.picture import Picture, Reading
from isotorus.errors import exit_code
from tests.data_pipeline.scientific_formats.test_packing import members

CELLS = np.random.default_rng(0).integers(0, 60_000, (2, 3, 4, 20, 30)).astype(np.uint16)
"""Times, channels, depths, rows, columns."""


def write(folder: Path, values: NDArray[Any], axes: str, version: str = "0.4", **more: Any) -> None:
    """Write an image with a level of half its size, as OME-Zarr 0.4 (Zarr 2) or 0.5 (Zarr 3) says."""
    group = zarr.open_group(str(folder), mode="a", zarr_format=2 if version == "0.4" else 3)
    for level in (1, 0):
        step = 2**level
        part = values[..., ::step, ::step]
        array = group.create_array(
            str(level), shape=part.shape, chunks=(*[1] * (values.ndim - 2), 16, 16), dtype=part.dtype
        )
        array[:] = part
    named = [{"name": a, "type": "space", "unit": "micrometer"} if a in "zyx" else {"name": a} for a in axes]
    levels = [
        {
            "path": str(i),
            "coordinateTransformations": [
                {"type": "scale", "scale": [1.0] * (len(axes) - 2) + [0.3 * 2**i, 0.2 * 2**i]}
            ],
        }
        for i in range(2)
    ]
    known = {"multiscales": [{"version": version, "axes": named, "datasets": levels}], **more}
    group.attrs.update(known if version == "0.4" else {"ome": known})


def read(folder: Path, **reading: Any) -> dict[str, Picture]:
    return {picture.name: picture for picture in formats.read("OME-Zarr", folder, Reading(**reading))}


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_depths_and_times_are_pictures_of_the_largest_level(tmp_path: Path, version: str) -> None:
    channels = {"omero": {"channels": [{"label": name} for name in ("DAPI", "GFP", "RFP")]}}
    write(tmp_path / "a.ome.zarr", CELLS, "tczyx", version, **channels)
    pictures = read(tmp_path / "a.ome.zarr", every=3)
    assert list(pictures) == ["t000_z000", "t000_z003", "t001_z002"]
    picture = pictures["t001_z002"]
    np.testing.assert_array_equal(picture.values, np.moveaxis(CELLS[1, :, 2], 0, 2))
    assert picture.header == {"spacing": [0.3, 0.2], "spacing_unit": "um", "channels": ["DAPI", "GFP", "RFP"]}
    write(tmp_path / "flat.zarr", CELLS[0, 0, 0], "yx", version)
    np.testing.assert_array_equal(read(tmp_path / "flat.zarr")[""].values, CELLS[0, 0, 0])


def test_the_images_of_a_plate_are_read_and_their_labels_are_not(tmp_path: Path) -> None:
    zarr.open_group(str(tmp_path / "plate.zarr"), mode="w", zarr_format=2)
    for well in ("A/1/0", "B/2/0"):
        write(tmp_path / "plate.zarr" / well, CELLS[0, 0, :2] + np.uint16(ord(well[0])), "zyx")
    write(tmp_path / "plate.zarr/A/1/0/labels/cells", CELLS[0, 0, 0], "yx")
    for place in ("A", "A/1", "B", "B/2"):
        zarr.open_group(str(tmp_path / "plate.zarr" / place), mode="a", zarr_format=2)
    pictures = read(tmp_path / "plate.zarr")
    assert list(pictures) == [f"s{s:03d}_z{z:03d}" for s in range(2) for z in range(2)]
    np.testing.assert_array_equal(pictures["s001_z001"].values, CELLS[0, 0, 1] + np.uint16(ord("B")))


def test_folders_are_packed_appended_and_their_changes_found(tmp_path: Path, capsys) -> None:
    def pack(*more: str) -> int:
        return exit_code(lambda: main(["pack", str(source), str(tmp_path / "set"), "--workers", "1", *more]))

    source = tmp_path / "cells"
    write(source / "day.1/a.ome.zarr", CELLS[0], "czyx")
    (source / "empty.zarr").mkdir()
    zarr.open_group(str(source / "other.zarr"), mode="w")
    assert pack() == 0
    dataset = Dataset(tmp_path / "set")
    keys = {dataset.key(i): i for i in range(len(dataset))}
    assert sorted(keys) == [f"day_1/a/z{z:03d}" for z in range(4)]
    np.testing.assert_array_equal(
        dataset.pixels(keys["day_1/a/z001"], None, None), np.moveaxis(CELLS[0, :, 1], 0, 2)
    )
    assert json.loads(members(dataset)["day_1/a/z001.json"])["spacing"] == [0.3, 0.2]
    skipped = dict(line.split("\t") for line in (tmp_path / "set/skipped.txt").read_text().splitlines())
    assert sorted(skipped) == ["empty.zarr", "other.zarr"]
    assert skipped["other.zarr"] == "a Zarr folder without an OME image"
    write(source / "b.zarr", CELLS[1], "czyx")
    for file in source.rglob("*"):
        os.utime(file, ns=(10**18, 10**18))
    capsys.readouterr()
    assert pack("--append") == 0
    assert capsys.readouterr().out.startswith("added 4 images, 1 were there already")
    assert pack("--append") == 0
    chunk = max(
        (source / "b.zarr/0").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0
    )
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"\x00")
    assert pack("--append") == 2
    assert "1 file changed (b.zarr)" in capsys.readouterr().err
