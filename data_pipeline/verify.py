"""Is a packed data set still what was packed? Sizes, checksums, and the index against the tar files."""

import hashlib
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline import pool
from data_pipeline.errors import UserError
from data_pipeline.index import Shard, describe, open_index

_CHUNK = 2**20


@dataclass(frozen=True)
class _Task:
    folder: Path
    shard: Shard
    rows: NDArray[np.void] | None
    """Of the index; None if it cannot be read."""


def verify(folder: Path, workers: int) -> list[str]:
    """A line for each damage found in a packed data set; empty if it is whole.

    Raises `UserError` if `folder` is none.
    """
    description = describe(folder)
    damage = []
    rows: NDArray[np.void] | None = None
    try:
        rows = open_index(folder, description)
    except UserError as error:
        damage.append(str(error))
    tasks = [
        _Task(folder, shard, None if rows is None else _rows_of(number, rows))
        for number, shard in enumerate(description.shards)
    ]
    for found in pool.run(_verify_shard, tasks, workers, "verifying", description.count):
        damage += found
    return damage


def _rows_of(shard: int, rows: NDArray[np.void]) -> NDArray[np.void]:
    start, end = np.searchsorted(rows["shard"], [shard, shard + 1])
    return np.array(rows[start:end])


def _verify_shard(task: _Task) -> list[str]:
    file = task.folder / task.shard.name
    try:
        return [f"{file}: {damage}" for damage in _damage(file, task)]
    except OSError as error:
        return [f"{file}: {error.strerror or error}"]


def _damage(file: Path, task: _Task) -> Iterator[str]:
    size = file.stat().st_size
    if size != task.shard.bytes:
        yield f"has {size} bytes instead of {task.shard.bytes}"
    if _sha256(file) != task.shard.sha256:
        yield "its SHA-256 is another"
    if task.rows is not None:
        yield from _changed_images(file, task.rows)
        yield from _index_against_tar(file, task.rows)


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _changed_images(file: Path, rows: NDArray[np.void]) -> Iterator[str]:
    with file.open("rb") as stream:
        for row in rows:
            pool.count()
            stream.seek(int(row["offset"]))
            if zlib.crc32(stream.read(int(row["size"]))) != row["checksum"]:
                yield f"the image at byte {row['offset']} has another checksum"


def _index_against_tar(file: Path, rows: NDArray[np.void]) -> Iterator[str]:
    indexed = {(int(row["offset"]), int(row["size"]), int(row["label"])) for row in rows}
    try:
        packed = set(_samples(file))
    except (tarfile.TarError, ValueError) as error:
        yield f"the tar file cannot be read to its end ({error})"
        return
    if missing := len(indexed - packed):
        yield f"{missing} samples are not where, or not labelled as, the index says"
    if unknown := len(packed - indexed):
        yield f"{unknown} samples are not in the index"


def _samples(file: Path) -> Iterator[tuple[int, int, int]]:
    """Offset, size and label of every image in a shard."""
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    with tarfile.open(file, "r:") as tar:
        for member in tar:
            key, _, extension = member.name.rpartition(".")
            if extension == "cls":
                content = tar.extractfile(member)
                assert content is not None
                labels[key] = int(content.read())
            elif extension != "json":
                images[key] = member.offset_data, member.size
    for key, (offset, size) in images.items():
        yield offset, size, labels.get(key, -1)
