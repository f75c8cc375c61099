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
from data_pipeline.cache import CacheConfig
from data_pipeline.description import describe
from data_pipeline.errors import UserError
from data_pipeline.index import open_rows, open_shards

_CHUNK = 2**20


@dataclass(frozen=True)
class _Task:
    file: Path
    bytes: int
    sha256: str
    rows: NDArray[np.void] | None
    """Of the index; None if it cannot be read."""


def verify(folder: str, workers: int) -> list[str]:
    """A line for each damage found in a packed data set; empty if it is whole.

    Raises `UserError` if `folder` is none.
    """
    cache = CacheConfig()
    generation = describe(folder, cache).generations[-1]
    damage = []
    rows: NDArray[np.void] | None = None
    try:
        rows = open_rows(folder, generation, cache)
    except UserError as error:
        damage.append(str(error))
    try:
        shards = open_shards(folder, generation, cache)
    except UserError as error:
        return [*damage, str(error)]
    tasks = []
    for shard in shards:
        file = Path(folder, bytes(shard["name"]).decode(errors="surrogateescape"))
        first, samples = int(shard["first"]), int(shard["samples"])
        own = None if rows is None else np.array(rows[first : first + samples])
        tasks.append(_Task(file, int(shard["bytes"]), bytes(shard["sha256"]).decode(), own))
    for found in pool.run(_verify_shard, tasks, workers, "verifying", generation.count):
        damage += found
    return damage


def _verify_shard(task: _Task) -> list[str]:
    try:
        return [f"{task.file}: {damage}" for damage in _damage(task)]
    except OSError as error:
        return [f"{task.file}: {error.strerror or error}"]


def _damage(task: _Task) -> Iterator[str]:
    size = task.file.stat().st_size
    if size != task.bytes:
        yield f"has {size} bytes instead of {task.bytes}"
    if _sha256(task.file) != task.sha256:
        yield "its SHA-256 is another"
    if task.rows is not None:
        yield from _changed_images(task.file, task.rows)
        yield from _index_against_tar(task.file, task.rows)


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
