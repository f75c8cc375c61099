"""AVIF, JPEG 2000 and JPEG of 12 bits: the values of the field's library, and a line for what is not read."""

import io
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from data_pipeline.__main__ import main
from data_pipeline.dataset.index import Dataset
from data_pipeline.decoders import high_depth
from data_pipeline.decoders.decode import decode, size
from tests.data_pipeline.encoders import encoded
from tests.data_pipeline.pictures import picture, save_pictures

GREY = np.arange(1200, dtype=np.uint16).reshape(30, 40)


def of_pillow(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("kind", ["jp2", "j2k"])
@pytest.mark.parametrize(
    "values", [GREY * 54, np.stack([GREY, GREY * 7, GREY * 50], 2), GREY.astype(np.uint8)]
)
def test_jpeg_2000_keeps_every_bit(kind: str, values: NDArray[np.uint16]) -> None:
    data = imagecodecs.jpeg2k_encode(values, codecformat=kind, reversible=True)
    read = decode(data, depth=None)
    assert read.dtype == values.dtype and size(data) == (30, 40)
    np.testing.assert_array_equal(read.squeeze(), values)
    np.testing.assert_array_equal(imagecodecs.jpeg2k_decode(data), values)


def test_colour_jpeg_2000_and_avif_are_read_as_pillow_reads_them() -> None:
    for form in ("jpeg2000", "avif"):
        data = encoded(picture(3), form)
        np.testing.assert_array_equal(decode(data), of_pillow(data))
        assert size(data) == (40, 48)


def test_an_avif_is_turned_as_people_see_it() -> None:
    exif = Image.Exif()
    exif[274] = 6
    stream = io.BytesIO()
    picture(3).save(stream, "avif", exif=exif.tobytes(), quality=100)
    upright = np.rot90(of_pillow(encoded(picture(3), "png")), -1)
    assert size(stream.getvalue()) == (48, 40)
    assert np.abs(decode(stream.getvalue()).astype(int) - upright).mean() < 3


def test_a_jpeg_of_12_bits_keeps_them() -> None:
    data = imagecodecs.jpeg8_encode(GREY * 3, bitspersample=12, level=100)
    np.testing.assert_array_equal(decode(data, depth=None)[..., 0], imagecodecs.jpeg8_decode(data))
    assert size(data) == (30, 40) and decode(data, depth=None).max() > 3500
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        decode(data[: len(data) // 8], depth=None)


def test_what_cannot_be_read_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    deep = imagecodecs.avif_encode(np.zeros((20, 30, 3), np.uint16), bitspersample=10)
    with pytest.raises(ValueError, match="an AVIF of more than 8 bits; convert it"):
        decode(deep)
    sixteen = imagecodecs.jpeg2k_encode(GREY, codecformat="jp2")
    for cut in (10, 60, len(sixteen) // 2):
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            decode(sixteen[:cut], depth=None)
    signed = imagecodecs.jpeg2k_encode(GREY.astype(np.int16), codecformat="jp2")
    with pytest.raises(ValueError, match="int16"):
        decode(signed, depth=None)
    monkeypatch.setitem(__import__("sys").modules, "imagecodecs", None)
    with pytest.raises(
        ValueError, match=r'a JPEG 2000 of 16 bits is read by imagecodecs; pip install "isotorus'
    ):
        decode(sixteen, depth=None)


def test_they_are_packed_and_companions_of_macos_are_only_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    save_pictures(folder, ["a.avif", "b.jp2", "c.png"])
    for name in ("._a.avif", "._c.png", "._notes.txt"):
        (folder / name).write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    assert main(["pack", str(folder), str(tmp_path / "set"), "--workers", "1"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("packed: 3 images in 1 shards") and "skipped" not in said
    assert said.splitlines()[-1] == f"not packed: left out of {folder}: 3 companion files of macOS (._…)"
    assert len(Dataset(tmp_path / "set")) == 3


def test_signed_and_reduced_grids_of_jpeg_2000_have_their_size() -> None:
    data = bytearray(imagecodecs.jpeg2k_encode(GREY, codecformat="j2k"))
    at = data.find(b"\xff\x4f\xff\x51")
    data[at + 16 : at + 20] = (5).to_bytes(4, "big")  # the image begins at column 5 of its grid
    assert high_depth.size(bytes(data)) == (30, 35)
