"""Find the orientation tag of an image file, and turn pixels by it as people see the image.

The tag is number 274 of EXIF and of TIFF (TIFF 6.0, page 36). It is 1 to 8 and says where the first stored
row and column are seen: 1 top left, 2 top right, 3 bottom right, 4 bottom left, and 5 to 8 the same with rows
and columns exchanged. Any other value counts as 1.
"""

import struct
from typing import Any, Final, TypeVar

from numpy.typing import NDArray

T = TypeVar("T", int, float)

TAG: Final = 274
_EXIF = b"Exif\0\0"
_NUMBERS = {1: "B", 3: "H", 4: "I"}  # types of a TIFF entry that hold a whole number: BYTE, SHORT, LONG


def of_jpeg(data: bytes) -> int:
    """Return the orientation tag of a JPEG; only the headers before its pixels are read."""
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] not in (b"", b"\xda", b"\xd9"):
        if data[at + 1] == 0xFF:  # a fill byte
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xE1 and data[at + 4 : at + 10] == _EXIF:
            return of_exif(data[at + 4 : end])
        at = end
    return 1


def of_png(data: bytes) -> int:
    """Return the orientation tag of a PNG, from its chunk eXIf, which may come before or after the pixels."""
    at = 8
    while at + 8 <= len(data):
        length, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if name == b"eXIf":
            return of_exif(data[at + 8 : at + 8 + length])
        if name == b"IEND":
            break
        at += 12 + length
    return 1


def of_webp(data: bytes) -> int:
    """Return the orientation tag of a WebP, from its chunk EXIF."""
    at = 12
    while at + 8 <= len(data):
        name, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if name == b"EXIF":
            return of_exif(data[at + 8 : at + 8 + length])
        at += 8 + length + length % 2
    return 1


def of_exif(block: bytes) -> int:
    """Return the orientation tag of an EXIF block, which is a small TIFF; 1 if it has none or is damaged."""
    block = block.removeprefix(_EXIF)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", block, 4)
        (entries,) = struct.unpack_from(f"{order}H", block, start)
        for entry in range(start + 2, start + 2 + 12 * entries, 12):
            number, kind, count = struct.unpack_from(f"{order}HHI", block, entry)
            if number == TAG:
                if kind not in _NUMBERS or count != 1:
                    return 1
                return valid(struct.unpack_from(order + _NUMBERS[kind], block, entry + 8)[0])
    except struct.error:  # the block is cut off
        pass
    return 1


def valid(tag: object) -> int:
    """Return the tag if it is a number from 1 to 8, else 1."""
    return tag if isinstance(tag, int) and 1 <= tag <= 8 else 1


def size_upright(height: T, width: T, tag: int) -> tuple[T, T]:
    """Return the height and width of the image as it is seen, from the stored ones.

    The distances between rows and between columns change in the same way.
    """
    return (width, height) if tag >= 5 else (height, width)


def upright(pixels: NDArray[Any], tag: int) -> NDArray[Any]:
    """Return stored pixels (H, W, C) as the image is seen."""
    if tag == 1:
        return pixels
    if tag >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if tag in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if tag in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels.copy(order="C")
