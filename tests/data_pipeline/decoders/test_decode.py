import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from data_pipeline.decoders.decode import decode, size
from tests.data_pipeline.encoders import deep_png, encoded, npy, tiff
from tests.data_pipeline.pictures import picture, png

RGB = np.asarray(picture(1))
DEEP = np.random.default_rng(0).integers(0, 65_536, (20, 30, 5), dtype=np.uint16)


@pytest.mark.parametrize("form", ["png", "bmp", "tiff", "webp"])
def test_lossless_formats_give_the_pixels_back(form: str) -> None:
    data = encoded(picture(1), form, **({"lossless": True} if form == "webp" else {}))
    np.testing.assert_array_equal(decode(data, 3), RGB)
    np.testing.assert_array_equal(decode(data, 3, 16), RGB.astype(np.uint16) * 257)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": "4:1:1"}, {"quality": 20}])
def test_jpeg_gives_what_pillow_gives(options: dict) -> None:
    for mode in ("RGB", "L", "CMYK"):
        data = encoded(picture(1, mode=mode), "jpeg", **options)
        theirs = Image.open(io.BytesIO(data)).convert("RGB")
        np.testing.assert_array_equal(decode(data, 3), np.asarray(theirs))


def test_jpeg_comes_smaller_where_that_is_enough() -> None:
    photo = picture(1, height=201, width=155)
    data = encoded(photo, "jpeg", quality=95)
    for shrink, shape in ((2, (101, 78, 3)), (4, (51, 39, 3)), (8, (26, 20, 3))):
        small = decode(data, 3, shrink=shrink)
        assert small.shape == shape
        assert np.abs(small.astype(int) - np.asarray(photo.reduce(shrink))).mean() < 3
    assert decode(png(1), 3, shrink=2).shape == (40, 48, 3)


def test_a_jpeg_with_odd_but_harmless_bytes_is_read() -> None:
    data = encoded(picture(1), "jpeg")
    np.testing.assert_array_equal(decode(data[:-2] + b"\0\0\0\0" + data[-2:], 3), decode(data, 3))


def test_channels_are_found_or_converted() -> None:
    grey = np.asarray(picture(1, mode="L"))[..., None]
    assert decode(png(1, mode="L")).shape == (40, 48, 1)
    assert decode(png(1)).shape == (40, 48, 3)
    np.testing.assert_array_equal(decode(png(1, mode="L"), 3), grey.repeat(3, 2))
    np.testing.assert_array_equal(decode(png(1), 1), grey)
    np.testing.assert_allclose(decode(encoded(picture(1), "jpeg", quality=100), 1), grey, atol=4)
    for mode in ("P", "RGBA", "CMYK"):
        form = "tiff" if mode == "CMYK" else "png"
        assert decode(encoded(picture(1).convert(mode), form)).shape == (40, 48, 3)
    assert decode(encoded(picture(1).convert("LA"), "png")).shape == (40, 48, 1)
    assert decode(encoded(picture(1).convert("1"), "png")).max() == 255


def test_another_number_of_channels_must_be_the_images_own() -> None:
    data = npy(DEEP)
    assert decode(data, 5, 16).shape == (20, 30, 5)
    for channels in (1, 3, 4):
        with pytest.raises(ValueError, match=f"5 channels; expected {channels}"):
            decode(data, channels)
    with pytest.raises(ValueError, match="3 channels; expected 5"):
        decode(png(1), 5)


@pytest.mark.parametrize(
    "data, expected",
    [
        (deep_png(DEEP[..., :1]), DEEP[..., :1]),
        (deep_png(DEEP[..., :2]), DEEP[..., :1]),
        (deep_png(DEEP[..., :3]), DEEP[..., :3]),
        (deep_png(DEEP[..., :4]), DEEP[..., :3]),
        (encoded(Image.fromarray(DEEP[..., 0]), "png"), DEEP[..., :1]),
        (encoded(Image.fromarray(DEEP[..., 0]), "tiff"), DEEP[..., :1]),
        (tiff(DEEP[..., :3], photometric="rgb"), DEEP[..., :3]),
        (tiff(DEEP[..., :4], photometric="rgb", extrasamples=["unassalpha"]), DEEP[..., :3]),
        (tiff(DEEP[..., :4], photometric="rgb", extrasamples=["unspecified"]), DEEP[..., :4]),
        (tiff(DEEP[..., 0], photometric="miniswhite"), 65_535 - DEEP[..., :1]),
        (npy(DEEP), DEEP),
        (npy(DEEP.astype(">u2")), DEEP),
        (npy(np.asfortranarray(DEEP)), DEEP),
        (npy(DEEP[..., 0]), DEEP[..., :1]),
    ],
)
def test_sixteen_bits_stay_or_are_rounded_to_eight(data: bytes, expected: NDArray) -> None:
    assert size(data) == (20, 30)
    for pixels in (decode(data, None, 16), decode(data, None, None)):
        assert pixels.dtype == np.uint16
        np.testing.assert_array_equal(pixels, expected)
    rounded = np.floor(expected / 257 + 0.5)
    np.testing.assert_array_equal(decode(data), rounded)


@pytest.mark.parametrize("pixels", [DEEP, (DEEP >> 8).astype(np.uint8)])
@pytest.mark.parametrize(
    "options",
    [
        {"planarconfig": "contig"},
        {"planarconfig": "contig", "compression": "zlib", "predictor": True},
        {"planarconfig": "contig", "compression": "zlib", "tile": (16, 16)},
        {"planarconfig": "contig", "bigtiff": True, "byteorder": ">", "rowsperstrip": 3},
        {"planarconfig": "separate"},
        {"planarconfig": "separate", "compression": "zlib", "tile": (16, 16)},
        {"pages": True},
        {"pages": True, "compression": "zlib"},
    ],
)
def test_bands_and_pages_of_a_tiff_are_channels(pixels: NDArray, options: dict) -> None:
    contiguous = options.get("planarconfig") == "contig"
    pages = {k: v for k, v in options.items() if k != "pages"}
    array = pixels if contiguous else pixels.transpose(2, 0, 1)
    data = tiff(array, photometric="minisblack", **pages)
    np.testing.assert_array_equal(decode(data, 5, None), pixels)


@pytest.mark.parametrize("form", ["png", "webp"])
def test_an_animation_is_refused_by_name_except_in_sets_of_the_first_rules(form: str) -> None:
    options = {"lossless": True} if form == "webp" else {}
    data = encoded(picture(1), form, save_all=True, append_images=[picture(2), picture(3)], **options)
    for read in (decode, size):
        with pytest.raises(ValueError, match=f"animated {form.upper()} of 3 frames"):
            read(data)
    np.testing.assert_array_equal(decode(data, 3, rules=1), RGB)


NOISE = np.random.default_rng(0).bytes(10**6)
TRAILERS = {
    "noise": NOISE,
    "zeros": bytes(5000),
    "a film": b"\0\0\0\x18ftypmp42" + NOISE,
    "many scans": 500 * b"\xff\xda\0\x02",
    "a picture": encoded(picture(2), "jpeg"),
    "text": b"AROT" * 99,
}


@pytest.mark.parametrize("trailer", TRAILERS)
def test_what_follows_the_end_of_an_image_does_not_matter(trailer: str) -> None:
    options = [("jpeg", {}), ("jpeg", {"progressive": True}), ("png", {})]
    images = [encoded(picture(1), form, **more) for form, more in options]
    images += [encoded(picture(1, mode="CMYK"), "jpeg"), deep_png(DEEP[..., :3])]
    for data in images:
        np.testing.assert_array_equal(decode(data + TRAILERS[trailer], None, None), decode(data, None, None))


@pytest.mark.parametrize("trailer", ["zeros", "a picture", "text", "end marker"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": "4:1:1"}])
def test_a_truncated_jpeg_stays_damaged_whatever_follows(options: dict, trailer: str) -> None:
    data = encoded(picture(1), "jpeg", quality=95, **options)
    for lost in (2, 400):
        if (lost, trailer) == (2, "end marker"):
            continue  # a whole image
        with pytest.raises(ValueError, match=r"truncated|broken|two SOI"):
            decode(data[:-lost] + TRAILERS.get(trailer, b"\xff\xd9"))


def test_a_cmyk_jpeg_without_its_end_is_damaged() -> None:
    with pytest.raises(ValueError, match="truncated"):
        decode(encoded(picture(1, mode="CMYK"), "jpeg", quality=95)[:-400] + bytes(5000))


def huge_png() -> bytes:
    """A 16-bit PNG of a few bytes that says it has 20,000 × 10,000 pixels."""
    data = deep_png(DEEP[..., :3])
    header = b"IHDR" + struct.pack(">II", 20_000, 10_000) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def npy_header(shape: str, kind: str = "|u1") -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text.encode()


def strip_bomb() -> bytes:
    """A TIFF of 4 × 4 pixels whose strip unpacks to 300 MB."""
    strip = zlib.compress(bytes(300 * 10**6), 9)
    data = tiff(np.zeros((4, 4, 5), np.uint8), photometric="minisblack", planarconfig="contig", compression=8)
    position = len(data) + len(data) % 2
    whole = bytearray(data.ljust(position, b"\0") + strip)
    entries = struct.unpack_from("<H", whole, struct.unpack_from("<I", whole, 4)[0])[0]
    for i in range(entries):
        entry = struct.unpack_from("<I", whole, 4)[0] + 2 + 12 * i
        tag = struct.unpack_from("<H", whole, entry)[0]
        if tag in (273, 279):  # StripOffsets, StripByteCounts
            struct.pack_into("<HII", whole, entry + 2, 4, 1, position if tag == 273 else len(strip))
    return bytes(whole)


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "not an image"),
        (b"<html>not found</html>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (png(1)[:-300], "truncated|broken"),
        (deep_png(DEEP[..., :3])[:-300], "truncated|broken"),
        (encoded(picture(1), "jpeg")[:-200], "truncated"),
        (npy(DEEP)[:-1], "expected 6128"),
        (tiff(DEEP, photometric="minisblack", planarconfig="contig")[:-1000], "."),
        (encoded(Image.new("1", (20_000, 10_000)), "png"), "decompression bomb"),
        (huge_png(), "decompression bomb"),
        (npy_header("(50000, 50000, 3)"), "decompression bomb"),
        (npy_header("(9000, 9000, 30)"), "decompression bomb"),
        (npy_header("(1, 100000)"), "65535"),
        (npy_header("(0, 4)"), "empty"),
        (npy_header("(2, 2, 2, 2)"), "shape"),
        (npy_header("(4, 4)", "|O"), "a .npy of object; expected whole numbers or floats"),
        (npy_header("(4, 4)", "<c8"), "complex64"),
        (tiff(np.zeros((9_500, 9_500), np.uint8), compression="zlib"), "decompression bomb"),
        (strip_bomb(), "larger than it should be"),
        (encoded(picture(1), "jpeg", progressive=True)[:-2] + 200 * b"\xff\xda\0\x02" + b"\xff\xd9", "scans"),
        (encoded(Image.new("1", (65_600, 1)), "png"), "65535"),
        (encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "tiff"), "float32"),
        (tiff(np.zeros((4, 4), np.int16)), "int16"),
        (tiff(np.zeros((4, 4), np.uint32)), "uint32"),
    ],
)
def test_unusable_bytes_are_refused_with_a_reason_in_one_line(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as refused:
        decode(data, None, None)
    assert "\n" not in str(refused.value)


def test_a_compression_that_needs_another_package_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecodecs", None)  # as if it were not installed
    plain = tiff(DEEP, photometric="minisblack", planarconfig="contig")
    start = struct.unpack_from("<I", plain, 4)[0]
    data = bytearray(plain)
    for entry in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", plain, start)[0], 12):
        if struct.unpack_from("<H", plain, entry)[0] == 259:  # Compression
            struct.pack_into("<H", data, entry + 8, 5)  # LZW
    with pytest.raises(ValueError, match=r"LZW.*pip install imagecodecs"):
        decode(bytes(data))


def test_mutated_files_of_every_kind_give_pixels_or_a_reason() -> None:
    command = [sys.executable, "-m", "tests.data_pipeline.mutants", "1", "2000"]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, cwd=root)
    assert done.returncode == 0, done.stderr[-2000:]
    count, refused = map(int, done.stdout.split())
    assert count == 2000 and 2000 < refused < 5000
