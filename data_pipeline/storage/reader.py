"""Bytes of a data set, whether it lies on a disk or in a store that fsspec reads.

A name in a set is relative to its folder, or an absolute path or a URL of its own; so a local index
may point into a bucket.
"""

import functools
import os
import re
import sys
from pathlib import Path
from typing import BinaryIO

from data_pipeline.storage import remote
from data_pipeline.storage.cache import Cache, CacheConfig
from data_pipeline.storage.chunks import CHUNK, Chunks
from isotorus.errors import UserError, from_os_error

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_OPEN_SHARDS = 64
_BATCH = 8 * CHUNK
_WORTH_SAYING = 10**9  # bytes


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether it is a URL that fsspec reads, and no path."""
    return _URL.match(os.fspath(path)) is not None


def join(folder: str | os.PathLike[str], name: str) -> str:
    """The path or URL of `name` in `folder`; absolute paths and URLs stay as they are."""
    folder = os.fspath(folder)
    if is_remote(name):
        return name
    if is_remote(folder) and not name.startswith("/"):
        return f"{folder.rstrip('/')}/{name}"
    return str(Path(folder, name))


def fetch(url: str | os.PathLike[str], cache: CacheConfig) -> Path:
    """A local file with the bytes that `url` has now; a local path is returned as it is.

    It is brought into the cache once for each version, and stays there while this process lives.
    Raises `UserError` if it cannot be had.
    """
    url = os.fspath(url)
    if not is_remote(url):
        return Path(url)
    version = remote.version(url, cache.patience)
    key = f"file {version.size} {version.tag} {url}"
    store = Cache(cache)
    with store.lock(key):
        path = store.pin(key, version.size)
        if path is None:
            if version.size > _WORTH_SAYING:
                print(f"fetching {remote.shown(url)}, {version.size / 1e9:.1f} GB", file=sys.stderr)
            with store.write(key, version.size) as file:
                for first in range(0, version.size, _BATCH):
                    starts = range(first, min(first + _BATCH, version.size), CHUNK)
                    ranges = [(start, min(start + CHUNK, version.size)) for start in starts]
                    file.writelines(remote.read(url, ranges, cache.patience))
                file.flush()
                os.fsync(file.fileno())
                if remote.version(url, cache.patience) != version:
                    raise remote.changed(url)
            path = store.pin(key, version.size)
            assert path is not None
    return path


def open_reader(folder: str | os.PathLike[str], cache: CacheConfig) -> "Reader":
    """A reader of the shards of the set in `folder`; opens nothing before it is asked to."""
    return Reader(os.fspath(folder), cache)


class Reader:
    """Ranges of shards by name, for threads and forked processes alike.

    Whatever cannot be read is a `UserError` that names the shard.
    """

    def __init__(self, folder: str, cache: CacheConfig) -> None:
        self._folder = folder
        self._files = _Files()
        self._chunks = Chunks(cache)

    def read(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes of a shard from `offset` on; `UserError` if it does not have so many."""
        path = join(self._folder, name)
        source = self._source(path)
        if offset + size > source.size(path):
            raise UserError(
                f"shard {remote.shown(path)} has {source.size(path)} bytes, but the index points to "
                f"byte {offset + size}; run: python -m data_pipeline verify on its set"
            )
        return source.read(path, offset, size)

    def size(self, name: str) -> int:
        """Bytes of a shard: of a remote one as it was when this reader first asked."""
        path = join(self._folder, name)
        return self._source(path).size(path)

    def prefetch(self, name: str, offset: int, size: int) -> None:
        """Bring a range of a remote shard into the local cache in the background; never raises."""
        path = join(self._folder, name)
        if is_remote(path):
            self._chunks.prefetch(path, offset, size)

    def forget(self, name: str, offset: int, size: int) -> None:
        """Drop a range that proved wrong from the cache, so that the next read is from the source.

        `UserError` if the shard there is another than it was.
        """
        path = join(self._folder, name)
        if is_remote(path):
            self._chunks.forget(path, offset, size)

    def _source(self, path: str) -> "_Files | Chunks":
        return self._chunks if is_remote(path) else self._files


class _Files:
    """Shards on a disk: positional reads through a bounded number of handles, which forks may share."""

    def __init__(self) -> None:
        self._open = functools.lru_cache(_OPEN_SHARDS)(self._open_shard)
        self._sizes: dict[str, int] = {}

    def size(self, path: str) -> int:
        return self._open(path)[1]

    def read(self, path: str, offset: int, size: int) -> bytes:
        file, _ = self._open(path)
        try:
            data = os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise from_os_error(error, f"reading shard {path}") from error
        if len(data) < size:
            raise _replaced(path)
        return data

    def _open_shard(self, path: str) -> tuple[BinaryIO, int]:
        try:
            file = Path(path).open("rb")  # noqa: SIM115  stays open for other reads
            size = os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            raise UserError(
                f"shard {path} is missing; bring it back, or run: python -m data_pipeline verify on its set"
            ) from None
        except OSError as error:
            raise from_os_error(error, f"reading shard {path}") from error
        if self._sizes.setdefault(path, size) != size:
            raise _replaced(path)
        return file, size


def _replaced(path: str) -> UserError:
    return UserError(
        f"shard {path} was cut or replaced by another while it was in use; "
        "run: python -m data_pipeline verify on its set, and start again"
    )
