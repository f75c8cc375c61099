"""Write a shard again without the samples that were removed from its data set."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from tarfile import BLOCKSIZE, RECORDSIZE
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline import pool
from data_pipeline.dataset.index import key_hash
from data_pipeline.storage.tar_reader import Damaged, Tar, key_and_extension
from isotorus.errors import UserError, from_os_error
from isotorus.files import atomic

PACKED = re.compile(r"(shard-\d{6,})(?:\.(\d+))?\.tar")
"""Names of shards that `pack` and `compact` write."""
_COPIED = 2**20  # bytes; copying in pieces keeps large shards out of memory


@dataclass(frozen=True)
class Task:
    """A shard to write again."""

    folder: Path
    name: str
    sha256: str
    keys: NDArray[np.uint64]
    """Hashes of the keys of the samples to keep, in the order of the shard."""
    offsets: NDArray[np.uint64]
    """Offset in bytes of the image of each of these samples."""


class Rewritten(NamedTuple):
    """A shard that was written again."""

    name: str
    bytes: int
    sha256: str
    offsets: NDArray[np.uint64]
    """New offset in bytes of the image of each sample."""


def new_name(name: str) -> str:
    """Return the name of a shard after it was written again: shard-000003.1.tar for shard-000003.tar."""
    match = PACKED.fullmatch(name)
    assert match, name
    return f"{match[1]}.{int(match[2] or 0) + 1}.tar"


def is_packed(file: Path) -> bool:
    """Return whether `pack` has written this tar: its members have no date and are read-only."""
    with file.open("rb") as stream:
        header = stream.read(BLOCKSIZE)
    mode, time = header[100:107].strip(b"\0 "), header[136:147].strip(b"\0 ")
    return mode.lstrip(b"0") in (b"444", b"") and not time.strip(b"0")  # pax headers have mode 0


def rewrite(task: Task) -> Rewritten:
    """Copy a shard without the samples that are not kept, as `pack` would have written it, to its new name.

    Runs in a worker of `pool.run`. Raises `UserError` if the shard is damaged or cannot be copied.
    """
    source, target = task.folder / task.name, task.folder / new_name(task.name)
    try:
        with source.open("rb") as scanned, source.open("rb") as copied, atomic(target) as out:
            offsets = _copy(task, Tar(scanned, source.stat().st_size), copied, out)
        with target.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return Rewritten(target.name, target.stat().st_size, sha256, offsets)
    except Damaged as error:
        raise _damaged(task, str(error)) from None
    except OSError as error:
        raise from_os_error(error, f"writing {target}") from error


def _copy(task: Task, tar: Tar, copied: BinaryIO, out: BinaryIO) -> NDArray[np.uint64]:
    """Copy what is kept, and return the new offsets of the images; raise `UserError` if the shard is not the
    one that was published.
    """
    kept = set(task.keys.tolist())
    place = {offset: i for i, offset in enumerate(task.offsets.tolist())}
    offsets, found, start = np.zeros(len(task.offsets), np.uint64), 0, 0
    for member in tar:
        end = member.offset + -(-member.size // BLOCKSIZE) * BLOCKSIZE
        key, _ = key_and_extension(member.name) or (member.name, "")
        if key_hash(key) in kept:
            if (i := place.get(member.offset)) is not None:
                offsets[i] = out.tell() + member.offset - start
                found += 1
                pool.count()
            copied.seek(start)
            while start < end:
                start += out.write(copied.read(min(_COPIED, end - start)))
        start = end
    if tar.sha256 != task.sha256 or found != len(offsets):
        raise _damaged(task, "is not the one that was published")
    out.write(b"\0" * (2 * BLOCKSIZE))
    out.write(b"\0" * (-out.tell() % RECORDSIZE))
    return offsets


def _damaged(task: Task, what: str) -> UserError:
    """Return the error for a shard whose bytes are not those of the data set."""
    return UserError(
        f"{task.folder / task.name} {what}; bring it back from a copy (isotorus verify {task.folder}), then "
        "run the same command again"
    )
