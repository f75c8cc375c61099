"""Tiles of whole slides lie where they should, at the magnification that was asked for, and show tissue."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from data_pipeline.__main__ import main
from data_pipeline.dataset.index import Dataset
from data_pipeline.scientific_formats import formats
from data_pipeline.scientific_formats.picture import Picture, Reading
from isotorus.errors import exit_code
from tests.data_pipeline.scientific_formats.test_packing import members

HEIGHT, WIDTH = 1024, 1536


def slide(tissue: tuple[slice, slice]) -> NDArray[np.uint8]:
    """Return grey glass with a rectangle of pink tissue, which is smooth so that scaling changes little."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    pixels = np.full((HEIGHT, WIDTH, 3), 240, np.uint8)
    pink = np.stack([180 + 40 * np.sin(x / 90), 90 + 30 * np.sin(y / 70), 150 + 0 * x], axis=2)
    pixels[tissue] = pink[tissue].astype(np.uint8)
    return pixels


def write(path: Path, pixels: NDArray[np.uint8], mpp: float | None = 0.25) -> None:
    """Write a slide as Aperio's scanners do: the largest level, a thumbnail, and smaller levels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    known = "" if mpp is None else f"|MPP = {mpp}"
    text = (
        f"Aperio Image Library v11.2.1\n1536x1024 (256x256) JPEG/RGB Q=70|AppMag = 40|User = Jane Roe{known}"
    )
    options: dict[str, Any] = {"photometric": "rgb", "metadata": None, "compression": "zlib"}
    with tifffile.TiffWriter(path) as file:
        file.write(pixels, description=text, tile=(256, 256), **options)
        file.write(pixels[::8, ::8], description="Aperio Image Library\n1536x1024 -> 192x128", **options)
        for step in (4, 8):
            small = Image.fromarray(pixels).reduce(step)
            file.write(np.asarray(small), description=text, tile=(256, 256), **options)


def read(path: Path, **reading: Any) -> dict[str, Picture]:
    with path.open("rb") as file:
        return {picture.name: picture for picture in formats.read("whole slide", file, Reading(**reading))}


def test_tiles_of_the_largest_level_are_its_pixels(tmp_path: Path) -> None:
    pixels = slide((slice(256, 768), slice(512, 1100)))
    write(tmp_path / "a.svs", pixels)
    tiles = read(tmp_path / "a.svs", mpp=0.25, tissue=0.25)
    # The last column of tissue covers 76 of 256 pixels: 30 %.
    assert list(tiles) == [f"x{column:03d}_y{row:03d}" for row in (1, 2) for column in (2, 3, 4)]
    for name, tile in tiles.items():
        column, row = int(name[1:4]), int(name[6:])
        expected = pixels[row * 256 : (row + 1) * 256, column * 256 : (column + 1) * 256]
        np.testing.assert_array_equal(tile.values, expected)
    assert list(read(tmp_path / "a.svs", mpp=0.25, tissue=0.35, every=2)) == ["x002_y001", "x002_y002"]


@pytest.mark.parametrize("mpp", [0.5, 0.6, 1.0, 2.0])
def test_coarser_tiles_are_the_slide_made_smaller(tmp_path: Path, mpp: float) -> None:
    pixels = slide((slice(None), slice(None)))
    write(tmp_path / "a.svs", pixels)
    tiles = read(tmp_path / "a.svs", mpp=mpp, tile=64)
    side = 64 * mpp / 0.25
    assert len(tiles) == int(WIDTH / side) * int(HEIGHT / side)
    for name, tile in tiles.items():
        x, y = int(name[1:4]) * side, int(name[6:]) * side
        box = (x, y, x + side, y + side)
        expected = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BOX, box=box)
        assert tile.values.shape == (64, 64, 3)
        assert np.abs(tile.values.astype(int) - np.asarray(expected)).max() <= 6
        known = {"spacing": [mpp, mpp], "spacing_unit": "um", "device": "aperio", "magnification": 40}
        assert tile.header == known


def test_slides_are_packed_and_what_cannot_be_is_named(tmp_path: Path) -> None:
    pink, glass = slide((slice(None), slice(0, 512))), slide((slice(0, 0), slice(0, 0)))
    source = tmp_path / "slides"
    write(source / "T1.svs", pink)
    write(source / "glass.svs", glass)
    write(source / "unknown.svs", pink, mpp=None)
    write(source / "coarse.svs", pink, mpp=1.0)
    (source / "cut.svs").write_bytes((source / "T1.svs").read_bytes()[:5000])
    (source / "foreign.ndpi").write_bytes(b"hello" * 100)
    arguments = ["pack", str(source), str(tmp_path / "set"), "--tile", "128", "--workers", "1"]
    assert exit_code(lambda: main(arguments)) == 0
    dataset = Dataset(tmp_path / "set")
    assert {dataset.key(i) for i in range(len(dataset))} == {
        f"T1/x{column:03d}_y{row:03d}" for column in range(2) for row in range(4)
    }
    assert len(np.unique(dataset.groups)) == 1 and dataset.channels == 3
    assert "User" not in str(json.loads(members(dataset)["T1/x000_y000.json"]))
    skipped = dict(line.split("\t") for line in (tmp_path / "set/skipped.txt").read_text().splitlines())
    assert sorted(skipped) == ["coarse.svs", "cut.svs", "foreign.ndpi", "glass.svs", "unknown.svs"]
    assert "without a tile of at least 25% tissue" in skipped["glass.svs"]
    assert "too coarse for --mpp 0.5" in skipped["coarse.svs"]
    assert "µm a pixel" in skipped["unknown.svs"]
