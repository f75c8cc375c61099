"""One shard: its images are read, checked by decoding, counted and written to a tar file."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from tarfile import BLOCKSIZE
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from webdataset import TarWriter

from data_pipeline import pool
from data_pipeline.atomic import atomic
from data_pipeline.decode import decode
from data_pipeline.errors import UserError, from_os_error
from data_pipeline.index import LARGEST_IMAGE
from data_pipeline.listing import EXTENSIONS, Item
from data_pipeline.part import Census, Part, common_channels


@dataclass(frozen=True)
class Task:
    """A shard to be written."""

    source: Path
    """Folder of the images."""
    items: list[Item]
    labels: list[int]
    """Class index of each, -1 for none."""
    channels: int | None
    """Leave out images that cannot be had with this number of channels; None if all must have one number."""
    target: Path
    """The tar file; its index rows (.npy) and `Staged` (.json) come beside it."""

    @property
    def sources(self) -> str:
        """Tells a source file that was replaced, by another of equal size too."""
        stamps = "".join(f"{item.modified} " for item in self.items)
        return hashlib.blake2b(stamps.encode(), digest_size=8).hexdigest()


class Staged(BaseModel):
    """What is known of a finished shard that is not yet published."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True)

    sources: str
    channels: int | None
    part: Part


class _HashingFile:
    """A file that knows the SHA-256 of what was written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self._file.write(data)


def write(task: Task) -> Part:
    """Write the shard, its index rows and, when both are on the disk, its `Staged`.

    Runs in a worker of `pool.run` and counts images there. Raises `UserError` if a file cannot be
    read or has changed since it was listed, if the disk is full, or if the shard's images have
    different numbers of channels.
    """
    try:
        with atomic(task.target) as file:
            part, rows = _write_tar(task, file)
        with atomic(task.target.with_suffix(".npy")) as file:
            np.save(file, rows)
        with atomic(task.target.with_suffix(".json")) as file:
            staged = Staged(sources=task.sources, channels=task.channels, part=part)
            file.write(staged.model_dump_json().encode())
    except OSError as error:
        raise from_os_error(error, f"writing {task.target}") from error
    common_channels([part.contents])  # refuses now what would be refused when all shards are written
    return part


def finished(task: Task, *, check_sources: bool = True) -> Part | None:
    """What an earlier call has written of this shard; None if it has to be written (again)."""
    try:
        staged = Staged.model_validate_json(task.target.with_suffix(".json").read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    if check_sources and staged.sources != task.sources:
        return None
    fits = staged.channels is None and set(staged.part.contents) <= {task.channels}
    return staged.part if fits or staged.channels == task.channels else None


def _write_tar(task: Task, file: BinaryIO) -> tuple[Part, NDArray[np.void]]:
    census = Census()
    hashing = _HashingFile(file)
    # Without owner and date: the same bytes whenever and by whomever it is written.
    with TarWriter(hashing, user="", group="", mtime=0, encoder=False) as tar:
        for item, label in zip(task.items, task.labels, strict=True):
            pool.count()
            extension = Path(item.path).suffix.lower()
            try:
                if extension not in EXTENSIONS:
                    raise ValueError(f"no image by its name; expected {', '.join(sorted(EXTENSIONS))}")
                if item.size > LARGEST_IMAGE:
                    raise ValueError(f"{item.size} bytes; at most {LARGEST_IMAGE} are supported")
                data = _read(task.source, item)
                pixels = decode(data, task.channels, depth=None)
            except ValueError as error:
                census.skip(item.path, str(error))
                continue
            extension = extension.removeprefix(".")
            offset = _add(tar, item, extension, label, data)
            census.add(item.path, item.key, extension, label, offset, data, pixels)
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


def _add(tar: TarWriter, item: Item, extension: str, label: int, data: bytes) -> int:
    """Append a sample; the offset of its image in the tar file."""
    tar.write({"__key__": item.key, extension: data})
    offset = tar.tarstream.offset - -(-len(data) // BLOCKSIZE) * BLOCKSIZE
    sidecars: dict[str, str | bytes] = {"__key__": item.key}
    if label >= 0:
        sidecars["cls"] = str(label).encode()
    if item.extra:
        sidecars["json"] = item.extra.encode()
    tar.write(sidecars)
    return offset
