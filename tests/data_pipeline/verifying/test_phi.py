"""`verify --phi` lists what may identify a person, and nothing else."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, PngImagePlugin

from data_pipeline.__main__ import main
from data_pipeline.verifying import identifying
from isotorus.errors import exit_code
from tests.data_pipeline.pictures import picture, save_pictures
from tests.data_pipeline.scientific_formats.dicoms import write_dicom

IDENTIFYING = [
    *(
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "PatientAddress",
        "OtherPatientIDs",
        "IssuerOfPatientID",
        "NameOfPhysiciansReadingStudy",
        "AccessionNumber",
    ),
    *("ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName", "InstitutionName", "StationName"),
    *(
        "StudyDate",
        "AcquisitionDateTime",
        "StudyTime",
        "StudyDescription",
        "ImageComments",
        "PatientComments",
    ),
    *("SOPInstanceUID", "StudyInstanceUID", "DeviceSerialNumber", "StudyID", "PatientTelephoneNumbers"),
    *(
        "patient",
        "patient_id",
        "Name",
        "last name",
        "MRN",
        "dob",
        "date",
        "e-mail",
        "ZIP",
        "subject",
        "notes",
    ),
    *("OBSERVER", "DATE-OBS", "descrip", "00101010", "0010,0010", "GPSLatitude", "Artist", "UserComment"),
]
HARMLESS = [
    *("modality", "body_part", "view", "laterality", "device", "spacing", "spacing_unit", "thickness"),
    *("telescope", "filter", "exposure", "channels", "Modality", "ExposureTime", "PatientAge", "PatientSex"),
    *("EXPTIME", "KVP", "SliceThickness", "candidate", "age", "sex", "finding", "label", "EchoTime", "rate"),
    *(
        "Manufacturer",
        "ManufacturerModelName",
        "width",
        "filename_ok",
        "grade",
        "city_block",
        "dpi",
        "icc_profile",
    ),
]


def phi(dest: Path) -> int:
    return exit_code(lambda: main(["verify", "--phi", str(dest), "--workers", "1"]))


def pack(*arguments: object) -> None:
    assert exit_code(lambda: main(["pack", *map(str, arguments), "--workers", "1"])) == 0


@pytest.mark.parametrize("name", IDENTIFYING)
def test_fields_that_identify(name: str) -> None:
    assert identifying.kind_of(name)
    assert list(identifying.in_json({"a": [{name: "x"}]})) == [name]
    assert not list(identifying.in_json({name: ""}))


@pytest.mark.parametrize("name", HARMLESS)
def test_fields_that_do_not(name: str) -> None:
    assert not identifying.kind_of(name)


def test_kept_fields_and_columns_are_listed(tmp_path: Path, capsys) -> None:
    for number in range(3):
        write_dicom(tmp_path / f"scans/{number}.dcm", np.full((8, 8), number, np.uint8))
    pack(tmp_path / "scans", tmp_path / "plain", "--keep", "PatientAge")
    assert phi(tmp_path / "plain") == 0
    assert "no identifying field" in capsys.readouterr().out
    table = tmp_path / "table.csv"
    table.write_text("image,label,patient\n0.dcm,a,7\n1.dcm,b,\n2.dcm,b,8\n")
    keep = ("--keep", "PatientID", "--keep", "0010,0030", "--labels", table, "--val-fraction", "0.5")
    pack(tmp_path / "scans", tmp_path / "set", *keep)
    capsys.readouterr()
    assert phi(tmp_path / "set") == 1
    said = capsys.readouterr().out
    assert said.count("PatientID (number) in the JSON of") == 2  # in train and in val
    assert "PatientBirthDate (date) in the JSON" in said and "patient (number) in the JSON" in said
    assert "modality" not in said and "6 identifying fields" in said


def test_headers_of_pictures_are_read(tmp_path: Path, capsys) -> None:
    source = tmp_path / "photos"
    save_pictures(source, ["plain.png", "photo.jpg"])
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "Jane Roe"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2020:01:01 00:00:00"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (1.0, 2.0, 3.0)
    picture(1).save(source / "phone.jpg", exif=exif)
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Author", "Jane Roe")
    picture(1).save(source / "drawn.png", pnginfo=texts)
    pixels = np.asarray(picture(1))
    tifffile.imwrite(source / "a.tif", pixels, description="Jane's cells", metadata=None)
    tifffile.imwrite(source / "b.tif", pixels)  # tifffile writes a description of the shape
    tifffile.imwrite(source / "1.2.840.113619.2.55.3.tif", pixels)
    pack(source, tmp_path / "set")
    capsys.readouterr()
    assert phi(tmp_path / "set") == 1
    said = capsys.readouterr().out.splitlines()[:-1]
    lines = sorted(line.split(": ", 2)[2] for line in said)
    assert lines == [
        "Artist (name) in the image of 1 sample (first: phone)",
        "Author (name) in the image of 1 sample (first: drawn)",
        "DateTimeOriginal (date) in the image of 1 sample (first: phone)",
        "GPS position (address) in the image of 1 sample (first: phone)",
        "ImageDescription (free text) in the image of 1 sample (first: a)",
        "UID (number) in the key of 1 sample (first: 1_2_840_113619_2_55_3)",
    ]


def test_ome_metadata_are_listed_if_they_name_people_or_dates(tmp_path: Path) -> None:
    def written(**metadata: object) -> bytes:
        file = io.BytesIO()
        tifffile.imwrite(file, np.zeros((2, 8, 8), np.uint8), ome=True, metadata={"axes": "CYX", **metadata})
        return file.getvalue()

    assert identifying.in_image(written()) == set()
    assert identifying.in_image(written(Description="Jane's cells")) == {"ImageDescription"}


def test_what_cannot_be_read_is_not_called_clean(tmp_path: Path, capsys) -> None:
    """Tars of others may hold damaged headers and JSON; verify --phi goes on, and names them."""
    image = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(image, "png")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in {"a.png": image.getvalue(), "a.json": b"{", "b.png": image.getvalue()}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    assert main(["index", str(tmp_path), str(tmp_path), "--workers", "1"]) == 0
    capsys.readouterr()
    assert main(["verify", "--phi", str(tmp_path), "--workers", "1"]) == 1
    assert "something that cannot be read in the JSON of 1 sample (first: a)" in capsys.readouterr().out
    for damaged in (b"II*\0 damaged", b""):
        with pytest.raises(ValueError, match="the header cannot be read"):
            identifying.in_image(damaged)
