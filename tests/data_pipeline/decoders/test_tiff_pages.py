"""The pages of a TIFF after the first are channels, smaller copies that are left out, or refused."""

import io
import struct

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from data_pipeline.decoders.decode import decode, size
from tests.data_pipeline.encoders import encoded, tiff
from tests.data_pipeline.pictures import picture

PLANES = np.random.default_rng(0).integers(0, 65_536, (5, 40, 48), dtype=np.uint16)
RGB = np.asarray(picture(1))


def written(*pages: tuple[NDArray, dict]) -> bytes:
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        for array, options in pages:
            writer.write(array, **{"photometric": "minisblack", "metadata": None} | options)
    return stream.getvalue()


def one_directory(array: NDArray, **options: object) -> bytes:
    """Write a TIFF of several planes, one after another, in which only the first has a directory."""
    stream = io.BytesIO()
    kinds = {k: options.pop(k) for k in ("imagej", "byteorder") if k in options}
    with tifffile.TiffWriter(stream, **kinds) as writer:
        writer.write(array, photometric="minisblack", truncate=True, **options)
    assert len(tifffile.TiffFile(io.BytesIO(stream.getvalue())).pages) == 1
    return stream.getvalue()


def gets(data: bytes, planes: NDArray) -> None:
    np.testing.assert_array_equal(decode(data, None, None), planes.transpose(1, 2, 0))
    assert size(data) == planes.shape[1:]


REDUCED, MASK = {"subfiletype": 1}, {"subfiletype": 4}
SMALL = PLANES[:, ::2, ::2]
CHANNELS = {
    "ImageJ": tiff(PLANES, imagej=True, metadata={"axes": "CYX"}),
    "OME": tiff(PLANES, ome=True, metadata={"axes": "CYX"}),
    "named by tifffile": tiff(PLANES, photometric="minisblack", metadata={"axes": "CYX"}),
    "unnamed": tiff(PLANES, photometric="minisblack"),
    "ImageJ, one directory": one_directory(PLANES, imagej=True, metadata={"axes": "CYX"}),
    "ImageJ, one directory, big endian": one_directory(PLANES, imagej=True, byteorder=">"),
    "tifffile, one directory": one_directory(PLANES),
    "a thumbnail last": written(
        *((p, {}) for p in PLANES), (RGB[::4, ::4], {"photometric": "rgb"} | REDUCED)
    ),
    "a thumbnail first": written(
        (RGB[::4, ::4], {"photometric": "rgb"} | REDUCED), *((p, {}) for p in PLANES)
    ),
    "a thumbnail without a mark": written(*((p, {}) for p in PLANES), (RGB[:9, :9], {"photometric": "rgb"})),
    "a level of a pyramid": written(*((p, {}) for p in PLANES), *((p, REDUCED) for p in SMALL)),
    "a level without a mark": written(*((p, {}) for p in PLANES), *((p, {}) for p in SMALL)),
    "a reduced picture of the same size": written(*((p, {}) for p in PLANES), (PLANES[0], REDUCED)),
    "a mask": written(*((p, {}) for p in PLANES), (np.zeros((40, 48), bool), MASK)),
    "levels in sub-directories": written(
        *(pair for p in PLANES for pair in ((p, {"subifds": 1}), (p[::2, ::2], REDUCED)))
    ),
}


@pytest.mark.parametrize("kind", CHANNELS)
def test_pages_of_one_grey_band_are_channels_and_smaller_copies_are_none(kind: str) -> None:
    gets(CHANNELS[kind], PLANES)


def test_smaller_copies_of_a_colour_image_are_left_out() -> None:
    colour = {"photometric": "rgb"}
    for small in (REDUCED, {}):
        for pages in ((RGB, RGB[::3, ::3]), (RGB[::3, ::3], RGB)):
            data = written(*((p, colour | (small if p is not RGB else {})) for p in pages))
            np.testing.assert_array_equal(decode(data), RGB)
            assert size(data) == (40, 48)


STACK = PLANES[:2, None].repeat(3, 1)
REFUSED = {
    "2 depths": tiff(PLANES[:2], imagej=True, metadata={"axes": "ZYX"}),
    "5 times": tiff(PLANES, imagej=True, metadata={"axes": "TYX"}),
    "2 times and 3 depths": tiff(STACK, imagej=True, metadata={"axes": "TZYX"}),
    "5 depths": one_directory(PLANES, imagej=True, metadata={"axes": "ZYX"}),
    "3 depths": tiff(STACK, ome=True, metadata={"axes": "CZYX"}),
    "2 times": tiff(STACK, ome=True, metadata={"axes": "TCYX"}),
    "4 times": tiff(PLANES[:4], photometric="minisblack", metadata={"axes": "TYX"}),
    "3 pictures": encoded(picture(1), "tiff", save_all=True, append_images=[picture(2), picture(3)]),
    "1-bit pixels": encoded(
        picture(1, mode="1"), "tiff", save_all=True, append_images=[picture(2, mode="1")]
    ),
    "2 pictures": encoded(picture(1, mode="P"), "tiff", save_all=True, append_images=[picture(2, mode="P")]),
    "page 2 has another size": written((PLANES[0], {}), (PLANES[1, :30], {})),
    "page 3 has another": written((PLANES[0], {}), (PLANES[1], {}), (RGB, {"photometric": "rgb"})),
    "type": written((PLANES[0], {}), ((PLANES[1] >> 8).astype(np.uint8), {})),
    "orientation": written((PLANES[0], {}), (PLANES[1], {"extratags": [(274, 3, 1, 3, True)]})),
    "sub-directory": written((PLANES[0, ::4, ::4], {"subifds": 1} | REDUCED), (PLANES[0], {})),
    "one plane of the 5": one_directory(PLANES, imagej=True)[:6000],
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_no_image_of_channels_is_refused_by_name(reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        decode(REFUSED[reason])


def test_sets_of_the_first_rules_still_read_what_is_refused_now() -> None:
    assert decode(REFUSED["3 pictures"], rules=1).shape == (40, 48, 3)
    assert decode(REFUSED["2 depths"], None, None, rules=1).shape == (40, 48, 2)
    assert decode(CHANNELS["a thumbnail last"], None, None, rules=1).shape == (40, 48, 1)


def test_ome_metadata_that_describe_other_planes_are_refused() -> None:
    data = tiff(PLANES, ome=True, metadata={"axes": "CYX"}).replace(b'SizeC="5"', b'SizeC="4"')
    with pytest.raises(ValueError, match="5 full-size planes whose OME metadata describe 4 channels"):
        decode(data)


def packed_bits(bits: int, kind: int = 1) -> bytes:
    """A grey TIFF of 16 × 16 pixels of `bits` bits, packed without gaps; sample format `kind`."""
    strip = np.random.default_rng(0).bytes(16 * 16 * bits // 8)
    tags = [(256, 3, 16), (257, 3, 16), (258, 3, bits), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1)]
    tags += [(278, 3, 16), (279, 4, len(strip)), (339, 3, kind)]
    directory = struct.pack("<H", len(tags))
    for tag, form, value in tags:
        directory += struct.pack("<HHII" if form == 4 else "<HHIHxx", tag, form, 1, value)
    return b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + directory + bytes(4)


@pytest.mark.parametrize(
    "bits, kind, name",
    [
        (10, 1, "10-bit"),
        (12, 1, "12-bit"),
        (14, 1, "14-bit"),
        (24, 1, "24-bit"),
        (32, 1, "uint32"),
        (16, 2, "int16"),
        (32, 2, "int32"),
        (16, 3, "float16"),
        (32, 3, "float32"),
        (64, 3, "float64"),
    ],
)
def test_other_types_are_called_what_they_are(bits: int, kind: int, name: str) -> None:
    reason = rf"a TIFF of {name} pixels; expected numbers of" if name.endswith("bit") else rf"{name} values"
    with pytest.raises(ValueError, match=reason):
        decode(packed_bits(bits, kind))


@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("byteorder", "<>")
def test_bigtiff_in_either_byte_order(byteorder: str, tile: tuple[int, int] | None) -> None:
    for array in (RGB, RGB[..., 0].copy(), PLANES[0]):
        options = {"photometric": "rgb" if array.ndim == 3 else "minisblack", "tile": tile}
        data = tiff(array, bigtiff=True, byteorder=byteorder, extratags=[(274, 3, 1, 6, True)], **options)
        turned = np.rot90(array.reshape(*array.shape[:2], -1), -1)
        np.testing.assert_array_equal(decode(data, None, None), turned)
        assert size(data) == turned.shape[:2]
