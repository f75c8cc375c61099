"""Read the bytes of a data set, from a disk or from an object store.

A name in a data set is relative to its folder, or an absolute path, or a URL. So a local index may refer to
shards in a bucket.
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
from isotorus.errors import UserError, from_os_error, one_line
from isotorus.foreign_files import open_regular
from isotorus.secrets import holds_password

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_OPEN_SHARDS = 64  # local shards that are kept open
_BATCH = 8 * CHUNK  # bytes that are fetched concurrently
_WORTH_SAYING = 10**9  # bytes from which a download is reported


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Return whether `path` is a URL for fsspec and not a local path."""
    return _URL.match(os.fspath(path)) is not None


def refuse_password(url: str) -> None:
    """Raise `UserError` for a URL with a password, a token or a signature.

    Data sets, results and logs repeat the URLs that they were given, so that others would read it there.
    """
    if holds_password(url):
        raise UserError(
            f"{url} holds a password, a token or a signature, which would be written and shown; take it out "
            "and give it by the environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, FSSPEC_…"
        )


def join(folder: str | os.PathLike[str], name: str) -> str:
    """Return the path or URL of `name` in `folder`; absolute paths and URLs stay as they are."""
    folder = os.fspath(folder)
    if is_remote(name):
        return name
    if is_remote(folder) and not name.startswith("/"):
        return f"{folder.rstrip('/')}/{name}"
    return str(Path(folder, name))


def fetch(url: str | os.PathLike[str], cache: CacheConfig) -> Path:
    """Return a local file with the current bytes of `url`; a local path is returned as it is.

    Each version is downloaded into the cache once and stays there while this process lives. Raises
    `UserError` if it cannot be read, and OSError for a local path that is no regular file.
    """
    url = os.fspath(url)
    if not is_remote(url):
        open_regular(url).close()
        return Path(url)
    version = remote.version(url, cache.patience)
    key = f"file {version.size} {version.tag} {url}"
    store = Cache(cache)
    with store.lock(key):
        path = store.pin(key, version.size)
        if path is None:
            if version.size > _WORTH_SAYING:
                said = f"fetching {remote.shown(url)}, {version.size / 1e9:.1f} GB"
                print(one_line(said), file=sys.stderr)
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
    """Return a reader of the shards of the data set in `folder`; nothing is opened yet."""
    return Reader(os.fspath(folder), cache)


class Reader:
    """Reads ranges of shards by name; threads and forked processes may share it.

    Raises `UserError`, which names the shard, for whatever cannot be read.
    """

    def __init__(self, folder: str, cache: CacheConfig) -> None:
        self._folder = folder
        self._files = _Files()
        self._chunks = Chunks(cache)

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Return `size` bytes of a shard from `offset` on; raise `UserError` if it is too short."""
        path = join(self._folder, name)
        source = self._source(path)
        if offset + size > source.size(path):
            raise UserError(
                f"shard {remote.shown(path)} has {source.size(path)} bytes, but the index points to "
                f"byte {offset + size}; run: isotorus verify on its set"
            )
        return source.read(path, offset, size)

    def size(self, name: str) -> int:
        """Return the size of a shard in bytes; for remote shards at the time of this reader's first
        request.
        """
        path = join(self._folder, name)
        return self._source(path).size(path)

    def prefetch(self, name: str, offset: int, size: int) -> None:
        """Download a range of a remote shard into the local cache in the background; never raises."""
        path = join(self._folder, name)
        if is_remote(path):
            self._chunks.prefetch(path, offset, size)

    def forget(self, name: str, offset: int, size: int) -> None:
        """Delete a range with wrong bytes from the cache, so that the next read gets it from the store.

        Raises `UserError` if the shard was replaced.
        """
        path = join(self._folder, name)
        if is_remote(path):
            self._chunks.forget(path, offset, size)

    def _source(self, path: str) -> "_Files | Chunks":
        """Return what reads this shard: the remote or the local one."""
        return self._chunks if is_remote(path) else self._files


class _Files:
    """Reads shards on a disk, through a bounded number of open files that forked processes may share."""

    def __init__(self) -> None:
        self._open = functools.lru_cache(_OPEN_SHARDS)(self._open_shard)
        self._sizes: dict[str, int] = {}

    def size(self, path: str) -> int:
        """Return the size of a shard in bytes."""
        return self._open(path)[1]

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Return `size` bytes of a shard from `offset` on."""
        file, _ = self._open(path)
        try:
            data = os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise from_os_error(error, f"reading shard {path}") from error
        if len(data) < size:
            raise _replaced(path)
        return data

    def _open_shard(self, path: str) -> tuple[BinaryIO, int]:
        """Open a shard and return it with its size; raise `UserError` if it is missing or has changed its
        size.
        """
        try:
            file = open_regular(path)
            size = os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            raise UserError(
                f"shard {path} is missing; bring it back, or run: isotorus verify on its set"
            ) from None
        except OSError as error:
            raise from_os_error(error, f"reading shard {path}") from error
        if self._sizes.setdefault(path, size) != size:
            raise _replaced(path)
        return file, size


def _replaced(path: str) -> UserError:
    """Return the error for a shard that changed while it was in use."""
    return UserError(
        f"shard {path} was cut or replaced by another while it was in use; "
        "run: isotorus verify on its set, and start again"
    )
