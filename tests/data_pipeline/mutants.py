"""Decode mutated files of every kind: `python -m tests.data_pipeline.mutants SEED COUNT`.

The process fails if the decoder crashes, raises another exception than ValueError, needs more than 10 s of
CPU for an image, or more memory than the largest allowed image takes.
"""

import resource
import signal
import sys

import numpy as np
from PIL import Image

from data_pipeline.decoders.decode import decode, size
from data_pipeline.decoders.pixels import MOST_VALUES
from tests.data_pipeline.encoders import deep_png, encoded, npy, tiff
from tests.data_pipeline.pictures import picture

RGB = picture(1)
DEEP = np.asarray(RGB).astype(np.uint16) * 257


def exif_block() -> Image.Exif:
    block = Image.Exif()
    block[274] = 6
    return block


BANDS = np.concatenate([DEEP, DEEP], 2)[..., :5]
FILES = [
    encoded(RGB, "jpeg"),
    encoded(RGB, "jpeg", progressive=True),
    encoded(RGB.convert("L"), "jpeg"),
    encoded(RGB.convert("CMYK"), "jpeg"),
    encoded(RGB, "png"),
    encoded(RGB.convert("P"), "png"),
    deep_png(DEEP),
    deep_png(DEEP[..., :1]),
    encoded(RGB, "webp"),
    encoded(RGB, "webp", lossless=True),
    encoded(RGB, "bmp"),
    encoded(RGB.convert("P"), "bmp"),
    encoded(RGB, "tiff", compression="tiff_lzw"),
    encoded(RGB, "tiff", compression="jpeg"),
    encoded(RGB, "tiff", compression="packbits"),
    tiff(DEEP, photometric="rgb"),
    tiff(BANDS, photometric="minisblack", planarconfig="contig", compression="zlib", predictor=True),
    tiff(BANDS, photometric="minisblack", planarconfig="contig", compression="zlib", tile=(16, 16)),
    tiff(BANDS.transpose(2, 0, 1), photometric="minisblack", bigtiff=True, byteorder=">"),
    tiff(BANDS.transpose(2, 0, 1), imagej=True),
    tiff(BANDS.transpose(2, 0, 1), ome=True),
    encoded(RGB, "jpeg", exif=exif_block()),
    encoded(RGB, "png", exif=exif_block()),
    npy(DEEP),
]


def mutate(rng: np.random.Generator, data: bytes) -> bytes:
    start, end = sorted(rng.integers(0, len(data), 2))
    kind = rng.integers(6)
    if kind == 0:
        return data[:start]
    if kind == 1:
        return data[:start] + data[end:]
    if kind == 2:
        return data[:end] + data[start:]
    mutant = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        place = rng.integers(min(len(data), 200) if rng.random() < 0.6 else len(data))
        if kind == 3:
            mutant[place] ^= 1 << rng.integers(8)
        elif kind == 4:
            mutant[place : place + 4] = b"\xff\xff\xff\xff"
        else:
            order = "little" if rng.random() < 0.5 else "big"
            mutant[place : place + 4] = int(rng.integers(2**31)).to_bytes(4, order)
    return bytes(mutant)


def main(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    at_rest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for number in range(count):
        data = mutate(rng, FILES[number % len(FILES)])
        signal.setitimer(signal.ITIMER_PROF, 10)
        for read in (size, decode, lambda data: decode(data, 3, 16, 2)):
            try:
                read(data)
            except ValueError as error:
                assert str(error) and "\n" not in str(error)
                refused += 1
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - at_rest)
    assert grown < 4 * MOST_VALUES, f"{grown} bytes"
    print(count, refused)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
