"""Pictures that are not read are counted by their ending, and --strict refuses them."""

from pathlib import Path

import pytest

from data_pipeline.__main__ import main
from data_pipeline.dataset.index import Dataset
from isotorus.errors import exit_code
from tests.data_pipeline.encoders import encoded
from tests.data_pipeline.pictures import picture, save_pictures

JPEG = encoded(picture(1), "jpeg")
PICTURES = {
    "IMG_1.HEIC": b"\0\0\0\x18ftypheic",
    "IMG_2.heic": b"",
    "mr.nrrd": b"",
    "brain.mgz": b"",
    "cells.CZI": b"",
    "raw.CR2": b"",
    "raw.NEF": b"",
    "drawing.svg": b"<svg/>",
    "web.gif": encoded(picture(1), "gif"),
    "IMG_0001": JPEG,
    "upload.jpg_large": JPEG,
    "backup.jpg.bak": JPEG,
    "slice": b"\xff\x4f\xff\x51",
    "camera": b"\0\0\0\x18ftypcrx ",
    "old.picture": encoded(picture(1), "bmp"),
    "scan.bak": encoded(picture(1), "tiff"),
}
"""Names and the first bytes of pictures that are not read."""
COUNTS = (
    "16 pictures of formats or names that are not read (without ending 3, .bak 2, .heic 2, .cr2 1, .czi 1, "
    ".gif 1, .jpg_large 1, .mgz 1, .nef 1, .nrrd 1, .picture 1, .svg 1)"
)
NO_PICTURES = {
    "notes.txt": JPEG,
    "README": b"BM is no bitmap",
    ".DS_Store": b"\0\0\0\1Bud1",
    "._IMG_1.HEIC": b"\0\5\x16\7",
    "film.mp4": b"\0\0\0\x18ftypmp42",
    "clip": b"\0\0\0\x18ftypmp42",
    "empty": b"",
}


def run(*arguments: object) -> int:
    return exit_code(lambda: main(["pack", *map(str, arguments), "--workers", "1"]))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    save_pictures(tmp_path / "photos", ["a/1.png", "b/2.png"])
    for number, (name, data) in enumerate({**PICTURES, **NO_PICTURES}.items()):
        (tmp_path / "photos" / "ab"[number % 2] / name).write_bytes(data)
    return tmp_path / "photos"


def test_other_pictures_are_counted_in_the_last_line(source: Path, tmp_path: Path, capsys) -> None:
    for more in ([], [], ["--append"]):
        assert run(source, tmp_path / "set", "--labels", "folder", *more) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.startswith(f"not packed: {COUNTS} in {source}; convert them")


def test_strict_refuses_them_before_anything_is_written(source: Path, tmp_path: Path, capsys) -> None:
    assert run(source, tmp_path / "set", "--strict") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {COUNTS}") and said.count("\n") == 1
    assert not (tmp_path / "set").exists()


def test_a_folder_of_nothing_else_is_refused_with_what_it_holds(tmp_path: Path, capsys) -> None:
    (tmp_path / "a.heic").touch()
    assert run(tmp_path, tmp_path / "set") == 2
    assert "1 picture of formats or names that are not read (.heic 1)" in capsys.readouterr().err


def test_every_usual_ending_of_a_jpeg_is_read(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for ending in ("jpg", "JPEG", "jpe", "JFIF", "pjpeg"):
        (tmp_path / f"photos/{ending}.{ending}").write_bytes(JPEG)
    assert run(tmp_path / "photos", tmp_path / "set", "--strict") == 0
    assert len(Dataset(tmp_path / "set")) == 5
