"""Planes of FITS files have the values that astropy gives, scaled, compressed or blank."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from numpy.typing import NDArray

from data_pipeline.__main__ import main
from data_pipeline.dataset.index import Dataset
from data_pipeline.scientific_formats import formats
from data_pipeline.scientific_formats.picture import Picture, Reading
from isotorus.errors import exit_code

RANDOM = np.random.default_rng(0)
COUNTS = RANDOM.integers(0, 60_000, (3, 20, 30)).astype(np.uint16)
FLUX = RANDOM.normal(size=(20, 30)).astype(np.float32)


def read(path: Path, **reading: Any) -> dict[str, Picture]:
    with path.open("rb") as file:
        return {picture.name: picture for picture in formats.read("FITS", file, Reading(**reading))}


@pytest.mark.parametrize("kind", ["u1", "i2", "u2", "u4", "f4"])
def test_types_that_a_set_holds_stay_as_they_are(tmp_path: Path, kind: str) -> None:
    values = COUNTS[0].astype(kind)
    fits.PrimaryHDU(values).writeto(tmp_path / "a.fits")
    found = read(tmp_path / "a.fits")[""].values
    assert found.dtype == np.dtype(kind)
    np.testing.assert_array_equal(found, fits.getdata(tmp_path / "a.fits"))
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize(("values", "kind"), [(FLUX.astype("f8"), "f4"), (COUNTS[0].astype("i4"), "u4")])
def test_wider_types_become_the_nearest_that_a_set_holds(
    tmp_path: Path, values: NDArray[Any], kind: str
) -> None:
    fits.PrimaryHDU(values).writeto(tmp_path / "a.fits")
    found = read(tmp_path / "a.fits")[""].values
    assert found.dtype == np.dtype(kind)
    np.testing.assert_allclose(found, values, rtol=1e-7)


def test_scaled_numbers_and_blanks(tmp_path: Path) -> None:
    stored = RANDOM.integers(-1000, 1000, (20, 30)).astype(np.int16)
    stored[3, 4] = -999
    for name, cards in {"scaled": {"BSCALE": 0.5, "BZERO": 100.0}, "blank": {}}.items():
        part = fits.PrimaryHDU(stored)
        part.writeto(tmp_path / f"{name}.fits")
        with fits.open(tmp_path / f"{name}.fits", mode="update", do_not_scale_image_data=True) as parts:
            parts[0].header.update({"BLANK": -999, **cards})
        found = read(tmp_path / f"{name}.fits")[""].values
        expected = np.where(stored == -999, np.nan, stored * cards.get("BSCALE", 1) + cards.get("BZERO", 0))
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)


def test_planes_of_a_cube_parts_and_compressed_images(tmp_path: Path) -> None:
    cube = fits.ImageHDU(COUNTS, name="SCI")
    cube.header["EXPTIME"] = 30.0
    fits.HDUList([fits.PrimaryHDU(), cube, fits.ImageHDU(FLUX, name="ERR")]).writeto(tmp_path / "a.fits.gz")
    pictures = read(tmp_path / "a.fits.gz", every=2)
    assert list(pictures) == ["z000", "z002"]
    np.testing.assert_array_equal(pictures["z002"].values, COUNTS[2])
    assert pictures["z000"].header["exposure"] == 30
    for hdu in ("ERR", "err", "2"):
        np.testing.assert_array_equal(read(tmp_path / "a.fits.gz", hdu=hdu)[""].values, FLUX)
    with pytest.raises(ValueError, match="without the HDU DQ; it has 0 PRIMARY, 1 SCI, 2 ERR"):
        read(tmp_path / "a.fits.gz", hdu="DQ")

    packed = fits.CompImageHDU(COUNTS[:1], compression_type="RICE_1")
    fits.HDUList([fits.PrimaryHDU(), packed]).writeto(tmp_path / "b.fits.fz")
    np.testing.assert_array_equal(read(tmp_path / "b.fits.fz")[""].values, COUNTS[0])


def test_the_header_gives_the_scale_and_what_is_named_but_no_observer(tmp_path: Path) -> None:
    part = fits.PrimaryHDU(FLUX)
    part.header.update({"TELESCOP": "VLT", "INSTRUME": "FORS2", "OBSERVER": "Jane Roe", "DATE-OBS": "2020"})
    turned = np.deg2rad(30)
    part.header.update({"CRVAL1": 10.0, "CRVAL2": 2.0, "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN"})
    matrix = np.array([[np.cos(turned), -np.sin(turned)], [np.sin(turned), np.cos(turned)]]) * [2e-4, 3e-4]
    part.header.update({f"CD{i + 1}_{j + 1}": matrix[i, j] for i in range(2) for j in range(2)})
    part.writeto(tmp_path / "a.fits")
    expected = {"telescope": "VLT", "device": "FORS2", "spacing": [1.08, 0.72], "spacing_unit": "arcsec"}
    assert read(tmp_path / "a.fits")[""].header == expected
    kept = read(tmp_path / "a.fits", keep=("DATE-OBS", "AIRMASS"))[""].header
    assert kept == expected | {"DATE-OBS": "2020"}


def test_images_are_packed_and_damaged_ones_are_left_out(tmp_path: Path) -> None:
    source = tmp_path / "sky"
    source.mkdir()
    fits.PrimaryHDU(COUNTS).writeto(source / "field.v2.fits")
    data = (source / "field.v2.fits").read_bytes()
    (source / "night_1").write_bytes(data)
    (source / "cut.fits").write_bytes(data[: len(data) // 2])
    (source / "foreign.fit").write_bytes(b"hello" * 1000)
    table = fits.BinTableHDU.from_columns([fits.Column("x", "E", array=np.arange(3.0))])
    table.writeto(source / "catalogue.fts")
    assert exit_code(lambda: main(["pack", str(source), str(tmp_path / "set"), "--workers", "1"])) == 0
    dataset = Dataset(tmp_path / "set")
    keys = {dataset.key(i): i for i in range(len(dataset))}
    assert sorted(keys) == sorted(f"{name}/z{i:03d}" for name in ("field_v2", "night_1") for i in range(3))
    np.testing.assert_array_equal(dataset.pixels(keys["night_1/z001"], None, None)[..., 0], COUNTS[1])
    skipped = dict(line.split("\t") for line in (tmp_path / "set/skipped.txt").read_text().splitlines())
    assert sorted(skipped) == ["catalogue.fts", "cut.fits", "foreign.fit"]
    assert skipped["catalogue.fts"] == "a FITS file without an image"
