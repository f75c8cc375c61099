"""Slices of NIfTI volumes have the values and the orientation that nibabel gives, whatever was stored."""

import itertools
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from data_pipeline.__main__ import main
from data_pipeline.dataset.index import Dataset
from data_pipeline.scientific_formats import formats
from data_pipeline.scientific_formats.picture import Picture, Reading
from isotorus.errors import exit_code

SHAPE = (5, 6, 7)
AFFINE = np.diag([2.0, 3.0, 4.0, 1.0])
STORED = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(np.int16) - 50
ORIENTATIONS = ["RAS", "LPS", "ASR", "IPL", "SAL"]


def read(path: Path, **reading: Any) -> dict[str, Picture]:
    with path.open("rb") as file:
        return {picture.name: picture for picture in formats.read("NIfTI", file, Reading(**reading))}


def volume(codes: str, **options: Any) -> nibabel.Nifti1Image:
    """A volume of a body that always looks alike in RAS+, stored in the orientation `codes`."""
    image = nibabel.Nifti1Image(STORED, AFFINE)
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(tuple(codes)))
    turned = image.as_reoriented(turn)
    assert "".join(nibabel.aff2axcodes(turned.affine)) == codes
    np.testing.assert_allclose(turned.affine, AFFINE @ inv_ornt_aff(turn, SHAPE))
    return turned


@pytest.mark.parametrize(("codes", "ending"), itertools.product(ORIENTATIONS, ["nii", "nii.gz"]))
def test_slices_are_those_of_the_canonical_volume(tmp_path: Path, codes: str, ending: str) -> None:
    path = tmp_path / f"brain.{ending}"
    nibabel.save(volume(codes), path)
    canonical = nibabel.as_closest_canonical(nibabel.load(path)).get_fdata()
    spacings = {"sagittal": [4, 3], "coronal": [4, 2], "axial": [3, 2]}
    for axis, (plane, letter) in enumerate((("sagittal", "x"), ("coronal", "y"), ("axial", "z"))):
        pictures = read(path, axis=plane)
        assert sorted(pictures) == [f"{letter}{i:03d}" for i in range(SHAPE[axis])]
        for i in range(SHAPE[axis]):
            picture = pictures[f"{letter}{i:03d}"]
            np.testing.assert_array_equal(picture.values, np.rot90(canonical.take(i, axis)))
            assert picture.values.dtype == np.int16
            assert picture.header["spacing"] == spacings[plane]
            assert picture.header["thickness"] == AFFINE[axis, axis]


@pytest.mark.parametrize(("slope", "inter", "kind"), [(2, -1024, np.int16), (0.5, 3, np.float32)])
def test_values_are_rescaled_as_nibabel_does(tmp_path: Path, slope: float, inter: float, kind: type) -> None:
    image = nibabel.Nifti1Image(STORED, AFFINE)
    image.header.set_slope_inter(slope, inter)
    # nibabel fits slopes anew when it saves a volume in memory: write the stored numbers themselves.
    with (tmp_path / "a.nii").open("wb") as file:
        image.header["magic"], image.header["vox_offset"] = b"n+1", 352
        file.write(image.header.binaryblock + bytes(4) + STORED.tobytes(order="F"))
    expected = nibabel.as_closest_canonical(nibabel.load(tmp_path / "a.nii")).get_fdata()
    assert expected.max() == STORED.max() * slope + inter
    for number in range(SHAPE[2]):
        values = read(tmp_path / "a.nii")[f"z{number:03d}"].values
        assert values.dtype == kind
        np.testing.assert_allclose(values, np.rot90(expected[..., number]), rtol=1e-6)


@pytest.mark.parametrize("name", ["anatomical.nii", "example4d.nii.gz", "example_nifti2.nii.gz"])
def test_volumes_of_scanners_have_the_values_of_nibabel(name: str) -> None:
    path = Path(nibabel.__file__).parent / "tests/data" / name
    if not path.exists():
        pytest.skip("this nibabel comes without its test data")
    expected = nibabel.as_closest_canonical(nibabel.load(path)).get_fdata()
    expected = expected.reshape(*expected.shape[:3], -1)
    pictures = list(read(path, every=5).values())
    planes = [expected[:, :, z, t] for t in range(expected.shape[3]) for z in range(0, expected.shape[2], 5)]
    for picture, plane in zip(pictures, planes, strict=True):
        np.testing.assert_allclose(picture.values, np.rot90(plane), rtol=1e-6)


def test_times_colours_flat_images_and_single_slices(tmp_path: Path) -> None:
    films = np.random.default_rng(0).normal(size=(*SHAPE, 3))
    nibabel.save(nibabel.Nifti2Image(films, AFFINE), tmp_path / "film.nii.gz")
    pictures = read(tmp_path / "film.nii.gz", every=3)
    assert sorted(pictures) == [f"t{t:03d}_z{z:03d}" for t in range(3) for z in (0, 3, 6)]
    found = pictures["t002_z003"].values
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.rot90(films[..., 3, 2].astype(np.float32)))

    colour = np.zeros((4, 5, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    colour["G"] = 7
    nibabel.save(nibabel.Nifti1Image(colour, np.eye(4)), tmp_path / "dti.nii")
    assert read(tmp_path / "dti.nii")["z001"].values[3, 2].tolist() == [0, 7, 0]

    nibabel.save(nibabel.Nifti1Image(STORED[:, :, :1], AFFINE), tmp_path / "one.nii")
    assert list(read(tmp_path / "one.nii")) == ["z000"]
    nibabel.save(nibabel.Nifti1Image(STORED[:, :, 0], AFFINE), tmp_path / "flat.nii")
    np.testing.assert_array_equal(read(tmp_path / "flat.nii")[""].values, np.rot90(STORED[:, :, 0]))


def test_free_text_is_kept_only_if_it_is_named(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(STORED, AFFINE)
    image.header["descrip"] = b"Jane Roe, 1950"
    nibabel.save(image, tmp_path / "a.nii")
    assert set(read(tmp_path / "a.nii")["z000"].header) == {"spacing", "spacing_unit", "thickness"}
    assert read(tmp_path / "a.nii", keep=("descrip",))["z000"].header["descrip"] == "Jane Roe, 1950"


def test_volumes_are_packed_and_damaged_ones_are_left_out(tmp_path: Path) -> None:
    source = tmp_path / "scans"
    source.mkdir()
    bright = (STORED + 60).astype(np.uint16)
    nibabel.save(nibabel.Nifti1Image(bright, AFFINE), source / "sub-01.T1w.nii.gz")
    nibabel.save(nibabel.Nifti1Image(bright, AFFINE), source / "whole.nii")
    data = (source / "whole.nii").read_bytes()
    (source / "cut.nii").write_bytes(data[:-100])
    (source / "cut.nii.gz").write_bytes((source / "sub-01.T1w.nii.gz").read_bytes()[:-30])
    (source / "cut.nii.gz").rename(source / "short.nii.gz")
    (source / "foreign.nii").write_bytes(b"hello" * 200)
    nibabel.save(nibabel.Nifti1Image(bright.astype(complex), AFFINE), source / "complex.nii")
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2, 2, 2)), AFFINE), source / "five.nii")
    arguments = ["pack", str(source), str(tmp_path / "set"), "--axis", "coronal", "--workers", "1"]
    assert exit_code(lambda: main(arguments)) == 0
    dataset = Dataset(tmp_path / "set")
    keys = {dataset.key(i): i for i in range(len(dataset))}
    assert sorted(keys) == sorted(f"{n}/y{i:03d}" for n in ("sub-01_T1w", "whole") for i in range(SHAPE[1]))
    shown = dataset.pixels(keys["whole/y004"], None, None)[..., 0]
    np.testing.assert_array_equal(shown, np.rot90(bright[:, 4]))
    skipped = dict(line.split("\t") for line in (tmp_path / "set/skipped.txt").read_text().splitlines())
    assert sorted(skipped) == ["complex.nii", "cut.nii", "five.nii", "foreign.nii", "short.nii.gz"]
    assert "5 dimensions" in skipped["five.nii"] and "complex" in skipped["complex.nii"]
