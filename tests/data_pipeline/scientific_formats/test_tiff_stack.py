"""Stacks of microscopes are packed picture by picture, with their channels; other TIFF files as they are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from data_pipeline.__main__ import main
from data_pipeline.dataset.index import Dataset
from data_pipeline.scientific_formats import tiff_stack
from data_pipeline.scientific_formats.picture import Picture, Reading
from isotorus.errors import exit_code

RANDOM = np.random.default_rng(0)
STACK = RANDOM.integers(0, 60_000, (2, 3, 4, 20, 30)).astype(np.uint16)
"""Times, depths, channels, rows, columns."""


def read(path: Path, **reading: Any) -> dict[str, Picture]:
    with path.open("rb") as file:
        assert tiff_stack.is_stack(file)
        return {picture.name: picture for picture in tiff_stack.read(file, Reading(**reading))}


def check(pictures: dict[str, Picture], expected: NDArray[Any]) -> None:
    """`expected` has times, depths, channels, rows and columns."""
    names = [f"t{t:03d}_z{z:03d}" for t in range(expected.shape[0]) for z in range(expected.shape[1])]
    assert list(pictures) == names
    for name, channels in zip(names, expected.reshape(-1, *expected.shape[2:]), strict=True):
        np.testing.assert_array_equal(pictures[name].values, np.moveaxis(channels, 0, 2))


@pytest.mark.parametrize("axes", ["TZCYX", "TCZYX", "CTZYX", "ZTCYX"])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"bigtiff": True, "byteorder": ">"}])
def test_an_ome_tiff_is_read_whatever_the_order_of_its_axes(tmp_path: Path, axes: str, options: dict) -> None:
    order = ["TZCYX".index(axis) for axis in axes]
    path = tmp_path / "cells.ome.tif"
    tifffile.imwrite(path, STACK.transpose(order), metadata={"axes": axes}, **options)
    pictures = read(path)
    expected = STACK if axes.index("T") < axes.index("Z") else None
    if expected is not None:
        check(pictures, expected)
    np.testing.assert_array_equal(
        pictures["t001_z002" if expected is not None else "z002_t001"].values, STACK[1, 2].transpose(1, 2, 0)
    )
    # tifffile's own reading of the file
    whole = tifffile.imread(path).transpose(np.argsort(order))
    np.testing.assert_array_equal(whole, STACK)


def test_colours_pyramids_floats_and_several_positions(tmp_path: Path) -> None:
    colours = RANDOM.integers(0, 256, (3, 40, 60, 3)).astype(np.uint8)
    with tifffile.TiffWriter(tmp_path / "slide.ome.tif") as file:
        file.write(colours, metadata={"axes": "ZYXS"}, subifds=1, photometric="rgb")
        file.write(colours[:, ::2, ::2], subfiletype=1, photometric="rgb")
    pictures = read(tmp_path / "slide.ome.tif")
    assert list(pictures) == ["z000", "z001", "z002"]
    np.testing.assert_array_equal(pictures["z001"].values, colours[1])

    depths = RANDOM.normal(size=(5, 8, 9)).astype(np.float32)
    with tifffile.TiffWriter(tmp_path / "plate.ome.tif") as file:
        for sign in (1, -1):
            file.write(sign * depths, metadata={"axes": "ZYX"}, photometric="minisblack")
    pictures = read(tmp_path / "plate.ome.tif", every=2)
    assert list(pictures) == [f"s{s:03d}_z{z:03d}" for s in range(2) for z in (0, 2, 4)]
    np.testing.assert_array_equal(pictures["s001_z004"].values[..., 0], -depths[4])


def test_the_metadata_give_spacing_and_channels(tmp_path: Path) -> None:
    metadata = {
        "axes": "ZCYX",
        "PhysicalSizeX": 0.2,
        "PhysicalSizeY": 0.3,
        "Channel": {"Name": ["DAPI", "GFP"]},
    }
    metadata |= {"PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm", "Description": "by Jane Roe"}
    tifffile.imwrite(tmp_path / "a.ome.tif", STACK[0, :, :2], metadata=metadata)
    expected = {"spacing": [0.3, 0.2], "spacing_unit": "um", "channels": ["DAPI", "GFP"]}
    assert read(tmp_path / "a.ome.tif")["z000"].header == expected
    kept = read(tmp_path / "a.ome.tif", keep=("SizeZ", "Compression"))["z000"].header
    assert kept == expected | {"SizeZ": "3", "Compression": 1}

    ends = {"imagej": True, "resolution": (5.0, 2.5), "metadata": {"axes": "ZYX", "unit": "um"}}
    tifffile.imwrite(tmp_path / "b.tif", STACK[0, :, 0], **ends)
    pictures = read(tmp_path / "b.tif")
    assert pictures["z000"].header == {"spacing": [0.4, 0.2], "spacing_unit": "um"}
    np.testing.assert_array_equal(pictures["z002"].values[..., 0], STACK[0, 2, 0])


def test_spacing_follows_the_rows_and_columns_of_a_turned_image(tmp_path: Path) -> None:
    for tag, expected in ((1, [0.4, 0.2]), (3, [0.4, 0.2]), (6, [0.2, 0.4]), (8, [0.2, 0.4])):
        ends = {"imagej": True, "resolution": (5.0, 2.5), "metadata": {"axes": "YX", "unit": "um"}}
        turned = [(274, "H", 1, tag, True)]
        tifffile.imwrite(tmp_path / "one.tif", STACK[0, 0, 0], extratags=turned, **ends)
        data = (tmp_path / "one.tif").read_bytes()
        assert tiff_stack.fields_of_one(data) == {"spacing": expected, "spacing_unit": "um"}


def test_stacks_are_packed_and_other_tiffs_stay_as_they_are(tmp_path: Path) -> None:
    source = tmp_path / "cells"
    source.mkdir()
    tifffile.imwrite(source / "well.A1.tif", STACK[:1], imagej=True, metadata={"axes": "TZCYX"})
    grey = {"photometric": "minisblack"}
    tifffile.imwrite(source / "flat.tif", STACK[0, 0], metadata={"axes": "CYX"}, **grey)
    satellite = np.moveaxis(STACK[0, 0], 0, 2)
    nodata = [(42113, "s", 0, "0", True)]
    bands = {"planarconfig": "contig", "extratags": nodata, "metadata": None}
    tifffile.imwrite(source / "bands.tiff", satellite, **bands, **grey)
    data = (source / "well.A1.tif").read_bytes()
    (source / "cut.tif").write_bytes(data[: len(data) // 2])
    arguments = ["pack", str(source), str(tmp_path / "set"), "--workers", "1"]
    for _ in range(2):
        assert exit_code(lambda: main(arguments)) == 0
    assert exit_code(lambda: main([*arguments, "--append"])) == 0
    dataset = Dataset(tmp_path / "set")
    keys = {dataset.key(i): i for i in range(len(dataset))}
    assert sorted(keys) == ["bands", "flat", "well_A1/z000", "well_A1/z001", "well_A1/z002"]
    for key, expected in (("bands", satellite), ("well_A1/z001", np.moveaxis(STACK[0, 1], 0, 2))):
        np.testing.assert_array_equal(dataset.pixels(keys[key], None, None), expected)
    assert dataset.read(keys["flat"]) == (source / "flat.tif").read_bytes()
    assert (tmp_path / "set/skipped.txt").read_text().startswith("cut.tif\t")
    groups = [int(dataset.groups[keys[f"well_A1/z{z:03d}"]]) for z in range(3)]
    assert len(set(groups)) == 1 and groups[0] and not dataset.groups[keys["flat"]]
