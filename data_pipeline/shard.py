"""One shard: its images are read, checked by decoding, counted and written to a tar file."""

import hashlib
import zlib
from pathlib import Path
from tarfile import BLOCKSIZE
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from webdataset import TarWriter

from data_pipeline import pool
from data_pipeline.atomic import atomic
from data_pipeline.decode import decode
from data_pipeline.errors import UserError, from_os_error
from data_pipeline.index import ROW
from data_pipeline.listing import EXTENSIONS, Item


class Part(BaseModel):
    """What is known of a finished shard; lies beside it as JSON, with its index rows as .npy."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True)

    plan: str
    """Fingerprint of the plan that the shard belongs to."""
    samples: int
    bytes: int
    sha256: str
    histograms: list[list[int]]
    """Pixels of every 8-bit value, for red, green and blue (3, 256): integers, so sums are exact."""
    grey: bool
    """Whether all its images are greyscale."""
    skipped: list[tuple[str, str]]
    """Path and reason of every file that is no readable image."""


class _HashingFile:
    """A file that knows the SHA-256 of what was written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self._file.write(data)


def write(source: Path, items: list[Item], target: Path, plan: str) -> Part:
    """Write `target` (.tar), its index rows (.npy) and, when both are on the disk, its `Part` (.json).

    Runs in a worker of `pool.run` and counts images there. Raises `UserError` if a file cannot be
    read or has changed since it was listed, or if the disk is full.
    """
    try:
        with atomic(target) as file:
            part, rows = _write_tar(source, items, file, plan)
        with atomic(target.with_suffix(".npy")) as file:
            np.save(file, rows)
        with atomic(target.with_suffix(".json")) as file:
            file.write(part.model_dump_json().encode())
    except OSError as error:
        raise from_os_error(error, f"writing {target}") from error
    return part


def _write_tar(source: Path, items: list[Item], file: BinaryIO, plan: str) -> tuple[Part, NDArray[np.void]]:
    rows: list[tuple[int, ...]] = []
    skipped: list[tuple[str, str]] = []
    histograms = np.zeros((3, 256), dtype=np.int64)
    grey = True
    hashing = _HashingFile(file)
    # Without owner and date: the same bytes whenever and by whomever it is written.
    with TarWriter(hashing, user="", group="", mtime=0, encoder=False) as tar:
        for item in items:
            pool.count()
            data = _read(source, item)
            try:
                pixels = _decode(item, data)
            except ValueError as error:
                skipped.append((_printable(item.path), str(error)))
                continue
            offset = _add(tar, item, data)
            height, width, channels = pixels.shape
            rows.append((0, offset, len(data), item.label, width, height, zlib.crc32(data)))
            grey = grey and channels == 1
            # One row is added to all three: grey is equal amounts of red, green and blue.
            histograms += [np.bincount(pixels[..., c].ravel(), minlength=256) for c in range(channels)]
    part = Part(
        plan=plan,
        samples=len(rows),
        bytes=file.tell(),
        sha256=hashing.sha256.hexdigest(),
        histograms=histograms.tolist(),
        grey=grey,
        skipped=skipped,
    )
    return part, np.array(rows, dtype=ROW)


def _read(source: Path, item: Item) -> bytes:
    try:
        data = (source / item.path).read_bytes()
    except OSError as error:
        raise from_os_error(error, "reading the images") from error
    if len(data) != item.size:
        raise UserError(
            f"{source / item.path} changed while it was packed; wait until it is whole and pack anew"
        )
    return data


def _printable(path: str) -> str:
    """Names on disk need not be text."""
    return path.encode(errors="surrogateescape").decode(errors="replace")


def _decode(item: Item, data: bytes) -> NDArray[np.uint8]:
    if Path(item.path).suffix.lower() not in EXTENSIONS:
        raise ValueError(f"no image by its name; expected {', '.join(sorted(EXTENSIONS))}")
    return decode(data, channels=None)


def _add(tar: TarWriter, item: Item, data: bytes) -> int:
    """Append a sample; the offset of its image in the tar file."""
    extension = Path(item.path).suffix.lower().removeprefix(".")
    tar.write({"__key__": item.key, extension: data})
    offset = tar.tarstream.offset - -(-len(data) // BLOCKSIZE) * BLOCKSIZE
    sidecars: dict[str, str | bytes] = {"__key__": item.key}
    if item.label >= 0:
        sidecars["cls"] = str(item.label).encode()
    if item.extra:
        sidecars["json"] = item.extra.encode()
    tar.write(sidecars)
    return offset
