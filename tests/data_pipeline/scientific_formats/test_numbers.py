"""The numbers of an instrument's files become brightness by the rule of --intensity."""

from pathlib import Path

import numpy as np
from astropy.io import fits

from data_pipeline.__main__ import main
from data_pipeline.dataset.index import Dataset
from tests.data_pipeline.scientific_formats.dicoms import write_dicom


def packed(folder: Path, *options: str) -> Dataset:
    assert main(["pack", str(folder), f"{folder}-set", "--workers", "1", *options]) == 0
    return Dataset(f"{folder}-set")


def brightness(b: np.ndarray) -> np.ndarray:
    return np.rint(65_535 * np.clip(b, 0, 1))


def test_hounsfield_units_of_a_scan_are_seen_through_a_window(tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(0, 4096, (3, 20, 24)).astype(np.uint16)
    folder = tmp_path / "scans"
    write_dicom(folder / "a.dcm", stored, NumberOfFrames=3, RescaleSlope=1, RescaleIntercept=-1024)
    dataset = packed(folder, "--intensity", "window:-160,240")
    assert len(dataset) == 3
    for i in range(3):
        units = stored[int(dataset.key(i)[-3:])].astype(float) - 1024
        expected = brightness((units + 160) / 400)
        np.testing.assert_array_equal(dataset.pixels(i, None, None)[..., 0], expected)


def test_an_empty_plane_of_a_cube_is_left_out_alone(tmp_path: Path) -> None:
    cube = np.random.default_rng(0).lognormal(2, 2, (4, 20, 24)).astype(np.float32)
    cube[0], cube[3, :5] = np.nan, np.nan
    folder = tmp_path / "sky"
    folder.mkdir()
    fits.PrimaryHDU(cube).writeto(folder / "a.fits")
    fits.PrimaryHDU(np.full((2, 5, 5), np.nan)).writeto(folder / "empty.fits")
    dataset = packed(folder, "--intensity", "asinh:3,10,1.5")
    assert sorted(dataset.key(i) for i in range(len(dataset))) == ["a/z001", "a/z002", "a/z003"]
    listed = (tmp_path / "sky-set/skipped.txt").read_text().splitlines()
    assert [line.partition("\t")[0] for line in listed] == [
        "a.fits (z000)", "empty.fits (z000)", "empty.fits (z001)",
    ]  # fmt: skip
    assert all("no valid value" in line for line in listed)
    for i in range(3):
        flux = cube[int(dataset.key(i)[-3:])].astype(float)
        expected = np.where(
            np.isnan(flux), 0, brightness(np.arcsinh(10 * (np.nan_to_num(flux) - 1.5) / 3) / 10)
        )
        np.testing.assert_array_equal(dataset.pixels(i, None, None)[..., 0], expected)
    line = ["pack", str(folder), f"{folder}-set", "--workers", "1", "--append"]
    assert main(line) == 0 and len(Dataset(dataset.path)) == 3
