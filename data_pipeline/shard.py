"""One shard: its images are read, checked by decoding, counted and written to a tar file."""

import hashlib
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
from data_pipeline.listing import EXTENSIONS, Item
from data_pipeline.part import Census, Part


class Staged(BaseModel):
    """A finished shard that is not yet published; lies beside it as JSON, with its index rows as .npy."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True)

    plan: str
    """Fingerprint of the plan that the shard belongs to."""
    part: Part


class _HashingFile:
    """A file that knows the SHA-256 of what was written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self._file.write(data)


def write(source: Path, items: list[Item], target: Path, plan: str) -> Part:
    """Write `target` (.tar), its index rows (.npy) and, when both are on the disk, its `Staged` (.json).

    Runs in a worker of `pool.run` and counts images there. Raises `UserError` if a file cannot be
    read or has changed since it was listed, or if the disk is full.
    """
    try:
        with atomic(target) as file:
            part, rows = _write_tar(source, items, file)
        with atomic(target.with_suffix(".npy")) as file:
            np.save(file, rows)
        with atomic(target.with_suffix(".json")) as file:
            file.write(Staged(plan=plan, part=part).model_dump_json().encode())
    except OSError as error:
        raise from_os_error(error, f"writing {target}") from error
    return part


def _write_tar(source: Path, items: list[Item], file: BinaryIO) -> tuple[Part, NDArray[np.void]]:
    census = Census()
    hashing = _HashingFile(file)
    # Without owner and date: the same bytes whenever and by whomever it is written.
    with TarWriter(hashing, user="", group="", mtime=0, encoder=False) as tar:
        for item in items:
            pool.count()
            data = _read(source, item)
            try:
                pixels = _decode(item, data)
            except ValueError as error:
                census.skip(item.path, str(error))
                continue
            extension = Path(item.path).suffix.lower().removeprefix(".")
            offset = _add(tar, item, extension, data)
            census.add(item.path, item.key, extension, item.label, offset, data, pixels)
    return census.part(file.tell(), hashing.sha256.hexdigest())


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


def _decode(item: Item, data: bytes) -> NDArray[np.uint8]:
    if Path(item.path).suffix.lower() not in EXTENSIONS:
        raise ValueError(f"no image by its name; expected {', '.join(sorted(EXTENSIONS))}")
    return decode(data, channels=None)


def _add(tar: TarWriter, item: Item, extension: str, data: bytes) -> int:
    """Append a sample; the offset of its image in the tar file."""
    tar.write({"__key__": item.key, extension: data})
    offset = tar.tarstream.offset - -(-len(data) // BLOCKSIZE) * BLOCKSIZE
    sidecars: dict[str, str | bytes] = {"__key__": item.key}
    if item.label >= 0:
        sidecars["cls"] = str(item.label).encode()
    if item.extra:
        sidecars["json"] = item.extra.encode()
    tar.write(sidecars)
    return offset
