"""DICOM files are read with the values that pydicom gives, compressed or not, and without patients' names."""

from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pydicom.data
import pytest
from numpy.typing import NDArray
from pydicom import uid

from data_pipeline.scientific_formats import formats
from data_pipeline.scientific_formats.picture import Picture, Reading
from tests.data_pipeline.scientific_formats.dicoms import read_by_pydicom, write_ct, write_dicom

RANDOM = np.random.default_rng(0)
GREY8 = RANDOM.integers(0, 256, (30, 20)).astype(np.uint8)
GREY12 = RANDOM.integers(0, 4096, (30, 20)).astype(np.uint16)
SIGNED = RANDOM.integers(-2000, 2000, (30, 20)).astype(np.int16)
COLOUR = RANDOM.integers(0, 256, (30, 20, 3)).astype(np.uint8)


def read(path: Path, **reading: Any) -> list[Picture]:
    with path.open("rb") as file:
        return list(formats.read("DICOM", file, Reading(**reading)))


def only(path: Path, **reading: Any) -> Picture:
    (picture,) = read(path, **reading)
    assert picture.name == ""
    return picture


def test_a_ct_slice_is_in_hounsfield_units_as_int16(tmp_path: Path) -> None:
    expected = write_ct(tmp_path / "a.dcm", seed=1)
    values = only(tmp_path / "a.dcm").values
    assert values.dtype == np.int16
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(values, read_by_pydicom(tmp_path / "a.dcm"))


@pytest.mark.parametrize("pixels", [GREY8, GREY12, SIGNED, COLOUR], ids=["grey8", "grey12", "signed", "rgb"])
def test_stored_numbers_keep_their_type(tmp_path: Path, pixels: NDArray[Any]) -> None:
    write_dicom(tmp_path / "a.dcm", pixels)
    values = only(tmp_path / "a.dcm").values
    assert values.dtype == pixels.dtype
    np.testing.assert_array_equal(values, pixels)


def test_a_fractional_slope_gives_float32(tmp_path: Path) -> None:
    write_dicom(tmp_path / "pet.dcm", GREY12, RescaleSlope="0.37", RescaleIntercept="0")
    values = only(tmp_path / "pet.dcm").values
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, read_by_pydicom(tmp_path / "pet.dcm"), rtol=1e-7)


@pytest.mark.parametrize(
    ("pixels", "bits", "expected"),
    [(GREY12, 12, 4095 - GREY12.astype(int)), (SIGNED, 16, -1 - SIGNED.astype(int))],
    ids=["unsigned", "signed"],
)
def test_monochrome1_is_inverted_within_its_stored_bits(
    tmp_path: Path, pixels: NDArray[Any], bits: int, expected: NDArray[Any]
) -> None:
    write_dicom(tmp_path / "a.dcm", pixels, stored_bits=bits, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(only(tmp_path / "a.dcm").values, expected)
    rescaled = {"RescaleSlope": 1, "RescaleIntercept": -1000}
    write_dicom(
        tmp_path / "b.dcm", pixels, stored_bits=bits, PhotometricInterpretation="MONOCHROME1", **rescaled
    )
    np.testing.assert_array_equal(only(tmp_path / "b.dcm").values, expected - 1000)


@pytest.mark.parametrize(
    ("syntax", "pixels", "bits", "coded"),
    [
        (uid.JPEGLosslessSV1, GREY12, 12, imagecodecs.ljpeg_encode(GREY12, bitspersample=12)),
        (uid.JPEGLosslessSV1, SIGNED, 16, imagecodecs.ljpeg_encode(SIGNED.view(np.uint16), bitspersample=16)),
        (uid.JPEGLossless, GREY8, 8, imagecodecs.ljpeg_encode(GREY8)),
        (uid.JPEGLSLossless, GREY12, 12, imagecodecs.jpegls_encode(GREY12)),
        (uid.JPEGLSLossless, COLOUR, 8, imagecodecs.jpegls_encode(COLOUR)),
        (uid.JPEG2000Lossless, SIGNED, 16, imagecodecs.jpeg2k_encode(SIGNED, codecformat="j2k", level=0)),
        (uid.JPEG2000Lossless, COLOUR, 8, imagecodecs.jpeg2k_encode(COLOUR, codecformat="j2k", level=0)),
    ],
)
def test_lossless_compression_gives_the_numbers_that_were_compressed(
    tmp_path: Path, syntax: str, pixels: NDArray[Any], bits: int, coded: bytes
) -> None:
    write_dicom(tmp_path / "a.dcm", pixels, stored_bits=bits, frames=[coded], syntax=syntax)
    values = only(tmp_path / "a.dcm").values
    assert values.dtype == pixels.dtype
    np.testing.assert_array_equal(values, pixels)


def test_rle_deflated_and_12_bit_jpeg_are_read(tmp_path: Path) -> None:
    write_dicom(tmp_path / "rle.dcm", GREY12)
    data = pydicom.dcmread(tmp_path / "rle.dcm")
    data.compress(uid.RLELossless)
    data.save_as(tmp_path / "rle.dcm")
    write_dicom(tmp_path / "deflated.dcm", GREY12, syntax=uid.DeflatedExplicitVRLittleEndian)
    for name in ("rle", "deflated"):
        np.testing.assert_array_equal(only(tmp_path / f"{name}.dcm").values, GREY12)
    smooth = np.add.outer(np.arange(30), np.arange(20)).astype(np.uint16) * 80
    coded = imagecodecs.jpeg8_encode(smooth, bitspersample=12, level=100)
    write_dicom(tmp_path / "a.dcm", smooth, stored_bits=12, frames=[coded], syntax=uid.JPEGExtended12Bit)
    assert np.abs(only(tmp_path / "a.dcm").values.astype(int) - smooth).max() <= 4


SCANS = [
    "693_J2KI",
    "CT_small",
    "ExplVR_BigEnd",
    "J2K_pixelrep_mismatch",
    "JPEG-lossy",
    "JPEG2000",
    "JPGExtended",
    "JPEGLSNearLossless_16",
    "MR_small_RLE",
    "MR_small_jp2klossless",
    "MR_small_jpeg_ls_lossless",
    "MR_small_padded",
    "SC_rgb_jpeg_dcmtk",
    "SC_rgb_rle_16bit",
    "SC_ybr_full_422_uncompressed",
    "image_dfl",
]
"""Files of scanners that pydicom brings along."""


@pytest.mark.parametrize("name", SCANS)
def test_files_of_scanners_have_the_values_of_pydicom(name: str) -> None:
    path = Path(pydicom.data.get_testdata_file(f"{name}.dcm", download=False) or "")
    values = only(path).values
    data = pydicom.dcmread(path)
    expected = pydicom.pixels.pixel_array(data)
    if data.SamplesPerPixel == 1:
        expected = pydicom.pixels.apply_rescale(expected, data)
    np.testing.assert_array_equal(values, expected)


def test_colours_become_rgb(tmp_path: Path) -> None:
    luma = np.full((8, 8, 3), 128, np.uint8)
    luma[..., 0] = 200  # grey in YBR
    write_dicom(tmp_path / "ybr.dcm", luma, PhotometricInterpretation="YBR_FULL")
    np.testing.assert_array_equal(only(tmp_path / "ybr.dcm").values, np.full((8, 8, 3), 200))
    table = np.arange(256, dtype=np.uint16) * 257
    palettes = {f"{c}PaletteColorLookupTableData": table.tobytes() for c in ("Red", "Green")}
    palettes["BluePaletteColorLookupTableData"] = table[::-1].tobytes()
    descriptors = {f"{c}PaletteColorLookupTableDescriptor": [256, 0, 16] for c in ("Red", "Green", "Blue")}
    path = tmp_path / "palette.dcm"
    write_dicom(path, GREY8, PhotometricInterpretation="PALETTE COLOR", **palettes, **descriptors)
    wide = GREY8.astype(np.uint16) * 257
    np.testing.assert_array_equal(only(path).values, np.stack([wide, wide, 65535 - wide], axis=2))


def test_frames_are_pictures_with_their_own_rescale(tmp_path: Path) -> None:
    frames = RANDOM.integers(0, 1000, (5, 8, 6)).astype(np.uint16)
    groups = []
    for number in range(5):
        rescale, measures, group = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
        rescale.RescaleSlope, rescale.RescaleIntercept = 2, -number
        measures.PixelSpacing, measures.SliceThickness = [0.5, 0.25], 3
        group.PixelValueTransformationSequence, group.PixelMeasuresSequence = [rescale], [measures]
        groups.append(group)
    path = tmp_path / "enhanced.dcm"
    write_dicom(path, frames, NumberOfFrames=5, PerFrameFunctionalGroupsSequence=groups)
    pictures = read(path, every=2)
    assert [p.name for p in pictures] == ["f000", "f002", "f004"]
    for picture, number in zip(pictures, (0, 2, 4), strict=True):
        np.testing.assert_array_equal(picture.values, frames[number] * 2 - number)
        assert picture.header["spacing"] == [0.5, 0.25] and picture.header["thickness"] == 3


def test_the_header_gives_no_patient_unless_it_is_named(tmp_path: Path) -> None:
    write_ct(tmp_path / "a.dcm", seed=1, PatientAge="070Y")
    expected = {"modality": "CT", "device": "Acme Scan 9", "spacing": [0.7, 0.8], "spacing_unit": "mm"}
    assert only(tmp_path / "a.dcm").header == expected | {"thickness": 2.5}
    kept = only(tmp_path / "a.dcm", keep=("PatientAge", "0010,0020", "NoSuchField")).header
    assert kept == expected | {"thickness": 2.5, "PatientAge": "070Y", "PatientID": "MRN-4711"}


def test_an_old_file_without_a_preamble_is_read(tmp_path: Path) -> None:
    data = write_dicom(tmp_path / "a.dcm", GREY12, syntax=uid.ImplicitVRLittleEndian)
    del data.file_meta
    data.preamble = None
    data.save_as(tmp_path / "old.dcm", implicit_vr=True, little_endian=True)
    assert (tmp_path / "old.dcm").read_bytes()[128:132] != b"DICM"
    np.testing.assert_array_equal(only(tmp_path / "old.dcm").values, GREY12)


def test_what_is_no_picture_is_refused_with_the_reason(tmp_path: Path) -> None:
    data = write_dicom(tmp_path / "a.dcm", GREY12)
    for name in ("PixelData", "Rows", "Columns"):
        del data[name]
    data.save_as(tmp_path / "report.dcm")
    with pytest.raises(ValueError, match="without pixels"):
        read(tmp_path / "report.dcm")
    write_dicom(tmp_path / "film.dcm", GREY12, frames=[b"\0" * 10], syntax=uid.MPEG2MPML)
    with pytest.raises(ValueError, match=r"compressed as MPEG2 .* which is not read"):
        read(tmp_path / "film.dcm")
    (tmp_path / "foreign.dcm").write_bytes(b"%PDF-1.4" * 100)
    with pytest.raises(ValueError, match="no DICOM file"):
        read(tmp_path / "foreign.dcm")
