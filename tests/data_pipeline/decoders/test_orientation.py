"""Images of all formats are turned as their orientation tag says, and the index has the size after that."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image

from data_pipeline.decoders.decode import decode, size
from data_pipeline.transforms.config import ViewsConfig
from data_pipeline.transforms.views import cut
from tests.data_pipeline.encoders import deep_png, encoded, tiff
from tests.data_pipeline.pictures import picture

RGB = picture(1)
DEEP = np.random.default_rng(0).integers(0, 65_536, (40, 48, 5), dtype=np.uint16)
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def seen(pixels: NDArray, tag: int) -> NDArray:
    """Return the turned pixels, by Pillow's operations on one channel after another."""
    if tag not in TURNS:
        return pixels
    turned = [
        Image.fromarray(band.astype(np.int32)).transpose(TURNS[tag]) for band in np.moveaxis(pixels, 2, 0)
    ]
    return np.stack([np.asarray(band) for band in turned], axis=2).astype(pixels.dtype)


def exif(tag: int) -> Image.Exif:
    block = Image.Exif()
    block[274] = tag
    return block


def with_chunk(data: bytes, tag: int, before: bytes) -> bytes:
    """A PNG with an eXIf chunk before the first chunk of another kind."""
    at = data.index(before) - 4
    body = b"eXIf" + exif(tag).tobytes().removeprefix(b"Exif\0\0")
    return (
        data[:at] + struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) + data[at:]
    )


def tagged(array: NDArray, tag: int, **options: object) -> bytes:
    return tiff(array, extratags=[(274, 3, 1, tag, True)], metadata=None, **options)


MAKERS: dict[str, Callable[[int], bytes]] = {
    "jpeg": lambda tag: encoded(RGB, "jpeg", exif=exif(tag)),
    "progressive jpeg": lambda tag: encoded(RGB, "jpeg", exif=exif(tag), progressive=True),
    "grey jpeg": lambda tag: encoded(RGB.convert("L"), "jpeg", exif=exif(tag)),
    "cmyk jpeg": lambda tag: encoded(RGB.convert("CMYK"), "jpeg", exif=exif(tag)),
    "jpeg of two pictures": lambda tag: encoded(
        RGB, "mpo", exif=exif(tag), save_all=True, append_images=[picture(2)]
    ),
    "png": lambda tag: encoded(RGB, "png", exif=exif(tag)),
    "palette png": lambda tag: encoded(RGB.convert("P"), "png", exif=exif(tag)),
    "bilevel png": lambda tag: encoded(RGB.convert("1"), "png", exif=exif(tag)),
    "png with alpha": lambda tag: encoded(RGB.convert("RGBA"), "png", exif=exif(tag)),
    "png, tag last": lambda tag: with_chunk(encoded(RGB, "png"), tag, b"IEND"),
    "16-bit grey png": lambda tag: with_chunk(deep_png(DEEP[..., :1]), tag, b"IDAT"),
    "16-bit colour png": lambda tag: with_chunk(deep_png(DEEP[..., :3]), tag, b"IDAT"),
    "16-bit png with alpha": lambda tag: with_chunk(deep_png(DEEP[..., :4]), tag, b"IEND"),
    "webp": lambda tag: encoded(RGB, "webp", exif=exif(tag)),
    "lossless webp": lambda tag: encoded(RGB.convert("RGBA"), "webp", exif=exif(tag), lossless=True),
    "tiff": lambda tag: tagged(np.asarray(RGB), tag, photometric="rgb"),
    "grey tiff": lambda tag: tagged(np.asarray(RGB.convert("L")), tag, resolution=(300, 72)),
    "lzw tiff": lambda tag: encoded(RGB, "tiff", tiffinfo={274: tag}, compression="tiff_lzw"),
    "jpeg in tiff": lambda tag: encoded(RGB, "tiff", tiffinfo={274: tag}, compression="jpeg"),
    "palette tiff": lambda tag: encoded(RGB.convert("P"), "tiff", tiffinfo={274: tag}),
    "fax tiff": lambda tag: encoded(RGB.convert("1"), "tiff", tiffinfo={274: tag}, compression="group4"),
    "cmyk tiff": lambda tag: encoded(RGB.convert("CMYK"), "tiff", tiffinfo={274: tag}),
    "tiff, thumbnail first": lambda tag: thumbnail_first(tag),
    "16-bit tiff": lambda tag: tagged(DEEP[..., 0], tag),
    "16-bit colour tiff": lambda tag: tagged(DEEP[..., :3], tag, photometric="rgb", byteorder=">"),
    "tiled tiff": lambda tag: tagged(
        DEEP, tag, photometric="minisblack", planarconfig="contig", tile=(16, 16), compression="zlib"
    ),
    "planar tiff": lambda tag: tagged(
        DEEP.transpose(2, 0, 1), tag, photometric="minisblack", planarconfig="separate", bigtiff=True
    ),
    "tiff of five pages": lambda tag: tagged(DEEP.transpose(2, 0, 1), tag, photometric="minisblack"),
    "8-bit bands": lambda tag: tagged(
        (DEEP >> 8).astype(np.uint8), tag, photometric="minisblack", planarconfig="contig"
    ),
}
TURNED_BEFORE = {"tiff", "grey tiff", "lzw tiff", "jpeg in tiff", "palette tiff", "fax tiff", "cmyk tiff"}
"""Formats that rules 1 turned, too."""


def thumbnail_first(tag: int) -> bytes:
    """A TIFF whose first page is a small copy without a tag."""
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        writer.write(np.asarray(RGB)[::4, ::4], subfiletype=1, metadata=None)
        writer.write(np.asarray(RGB), extratags=[(274, 3, 1, tag, True)], metadata=None)
    return stream.getvalue()


@pytest.mark.parametrize("kind", MAKERS)
def test_every_format_is_turned_as_it_is_seen(kind: str) -> None:
    stored = decode(MAKERS[kind](1), None, None)
    for tag in (*TURNS, 1):
        data = MAKERS[kind](tag)
        np.testing.assert_array_equal(decode(data, None, None), seen(stored, tag), err_msg=str(tag))
        for shrink in (1, 2, 8):
            small = decode(data, None, None, shrink).shape[:2]
            assert small in (size(data), tuple(-(-side // shrink) for side in size(data)))
        assert decode(data, None, None).shape[:2] == size(data)


@pytest.mark.parametrize("kind", sorted(MAKERS.keys() - {"tiff, thumbnail first"}))
def test_sets_of_the_first_rules_keep_their_pixels(kind: str) -> None:
    stored = decode(MAKERS[kind](1), None, None, 1, 1)
    for tag in TURNS:
        before = decode(MAKERS[kind](tag), None, None, 1, 1)
        np.testing.assert_array_equal(before, seen(stored, tag) if kind in TURNED_BEFORE else stored)
        assert size(MAKERS[kind](tag), 1) == (40, 48)


@pytest.mark.parametrize(
    "block", [b"", b"Exif\0\0", b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff"]
)
def test_a_damaged_tag_turns_nothing(block: bytes) -> None:
    data = encoded(RGB, "jpeg")
    header = b"Exif\0\0" + block
    damaged = data[:2] + b"\xff\xe1" + struct.pack(">H", len(header) + 2) + header + data[2:]
    np.testing.assert_array_equal(decode(damaged), decode(data))
    for tag in (0, 9, 65_535):
        assert size(encoded(RGB, "jpeg", exif=exif(tag))) == (40, 48)


def test_a_tiff_is_turned_by_its_own_tag_and_not_by_xmp() -> None:
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6"/></x:xmpmeta>'
    data = tiff(np.asarray(RGB), photometric="rgb", extratags=[(700, 1, len(packet), packet, True)])
    assert size(data) == decode(data).shape[:2] == (40, 48)


@pytest.mark.parametrize("form", ["jpeg", "tiff", "png"])
def test_every_part_of_a_large_turned_scan_is_in_some_view(form: str) -> None:
    quarters = np.kron(np.array([[40, 100], [160, 220]], np.uint8), np.ones((800, 1200), np.uint8))
    options = {"tiffinfo": {274: 6}} if form == "tiff" else {"exif": exif(6)}
    data = encoded(Image.fromarray(quarters), form, **options)
    config, counts = ViewsConfig(), np.zeros(4)
    for seed in range(12):
        out = [torch.empty(r.views, 1, r.size, r.size, dtype=torch.uint8) for r in config.resolutions()]
        cut(np.random.default_rng(seed), data, config, (0, 0), out)
        for views in out:
            counts += np.bincount(((views.numpy().astype(int).ravel() - 10) // 60).clip(0, 3), minlength=4)
    assert (counts / counts.sum() > 0.15).all()
