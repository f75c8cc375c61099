"""Read remote shards through the local cache, in chunks of 8 MiB that are each downloaded once per node.

The key of a chunk contains the size and tag of its shard, so a replaced shard never yields old bytes.

fsspec's "blockcache" stores blocks too, but it has no limit on their size on disk and no locks between
processes, and it does not prefetch. For obstore (MIT) see `remote`; it has no cache on disk.
"""

import functools
import os
import queue
import threading
import time
from contextlib import suppress

from pydantic import BaseModel, ValidationError

from data_pipeline.storage import remote
from data_pipeline.storage.cache import Cache, CacheConfig
from data_pipeline.storage.remote import Version

CHUNK = 8 * 2**20
"""Bytes of a chunk; the last chunk of a shard may be smaller."""
_THREADS = 2  # that prefetch, in each process
_WAITING = 256
"""Chunks that may wait to be prefetched. Requests beyond this are dropped, and the read itself fetches the
data."""


class _Answer(BaseModel):
    """The version of a shard as a store reported it."""

    asked: float
    """Time of the request, in seconds since 1970."""
    version: Version


class Chunks:
    """Reads shards by URL. It asks once for the version of each shard and then expects that version."""

    def __init__(self, config: CacheConfig) -> None:
        self._cache = Cache(config)
        self._patience = config.patience
        self._opened = time.time()
        self._version = functools.lru_cache(2**16)(self._ask_version)
        self._prefetcher: _Prefetcher | None = None

    def size(self, url: str) -> int:
        """Return the size of a shard in bytes."""
        return self._version(url).size

    def read(self, url: str, offset: int, size: int) -> bytes:
        """Return `size` bytes of a shard from `offset` on; the shard must be that long."""
        version = self._version(url)
        parts = []
        for number in range(offset // CHUNK, -(-(offset + size) // CHUNK)):
            start = max(offset - number * CHUNK, 0)
            stop = min(offset + size - number * CHUNK, CHUNK)
            parts.append(self._read_chunk(url, version, number, start, stop))
        return b"".join(parts)

    def prefetch(self, url: str, offset: int, size: int) -> None:
        """Download the chunks of a range in the background; errors are ignored here and appear in the
        read.
        """
        if self._prefetcher is None or self._prefetcher.process != os.getpid():
            self._prefetcher = _Prefetcher(self)
        for number in range(offset // CHUNK, -(-(offset + size) // CHUNK)):
            self._prefetcher.request(url, number)

    def forget(self, url: str, offset: int, size: int) -> None:
        """Delete the chunks of a range from the cache; raise `UserError` if the shard was replaced
        meanwhile.
        """
        version = self._version(url)
        for number in range(offset // CHUNK, -(-(offset + size) // CHUNK)):
            self._cache.drop(_key(url, version, number))
        self._cache.drop(_version_key(url))
        if remote.version(url, self._patience) != version:
            raise remote.changed(url)

    def download_if_missing(self, url: str, number: int) -> None:
        """Download a chunk in one attempt, unless it is cached or somebody is downloading it."""
        version = self._version(url)
        key, size = _key(url, version, number), _chunk_size(version, number)
        if size <= 0 or self._cache.read(key, size, 0, 0) is not None:
            return
        with self._cache.lock(key, wait=False) as held:
            if held and self._cache.read(key, size, 0, 0) is None:
                self._download(url, key, number, size, patience=0)

    def _read_chunk(self, url: str, version: Version, number: int, start: int, stop: int) -> bytes:
        """Return bytes [start, stop) of a chunk, from the cache or else from the store."""
        key, size = _key(url, version, number), _chunk_size(version, number)
        data = self._cache.read(key, size, start, stop)
        if data is None:
            with self._cache.lock(key):
                data = self._cache.read(key, size, start, stop)
                if data is None:
                    data = self._download(url, key, number, size, self._patience)[start:stop]
        return data

    def _download(self, url: str, key: str, number: int, size: int, patience: float) -> bytes:
        """Download a chunk into the cache and return its bytes."""
        start = number * CHUNK
        (data,) = remote.read(url, [(start, start + size)], patience)
        with self._cache.write(key, size) as file:
            file.write(data)
        return data

    def _ask_version(self, url: str) -> Version:
        """Return the version of a shard; ask the store unless a process has asked since this reader was
        opened.
        """
        key = _version_key(url)
        with self._cache.lock(key):
            with suppress(ValidationError):
                answer = _Answer.model_validate_json(self._cache.load(key) or b"")
                if answer.asked >= self._opened:
                    return answer.version
            answer = _Answer(asked=time.time(), version=remote.version(url, self._patience))
            record = answer.model_dump_json().encode()
            with self._cache.write(key, len(record)) as file:
                file.write(record)
        return answer.version


class _Prefetcher:
    """Threads of one process that download chunks; they are daemons, so they never delay its end."""

    def __init__(self, chunks: Chunks) -> None:
        self.process = os.getpid()
        self._chunks = chunks
        self._queue: queue.Queue[tuple[str, int]] = queue.Queue(_WAITING)
        self._requested: set[tuple[str, int]] = set()
        for _ in range(_THREADS):
            threading.Thread(target=self._work, daemon=True).start()

    def request(self, url: str, number: int) -> None:
        """Put a chunk into the queue, unless it is there or the queue is full."""
        chunk = (url, number)
        if chunk in self._requested:
            return
        self._requested.add(chunk)
        try:
            self._queue.put_nowait(chunk)
        except queue.Full:
            self._requested.discard(chunk)

    def _work(self) -> None:
        """Download requested chunks, one after another, without end."""
        while True:
            chunk = self._queue.get()
            with suppress(Exception):  # the read itself will raise the error
                self._chunks.download_if_missing(*chunk)
            self._requested.discard(chunk)


def _key(url: str, version: Version, number: int) -> str:
    """Return the cache key of a chunk."""
    return f"chunk {number} {version.size} {version.tag} {url}"


def _version_key(url: str) -> str:
    """Return the cache key of a shard's version."""
    return f"version {url}"


def _chunk_size(version: Version, number: int) -> int:
    """Return the size of a chunk in bytes; not positive if the shard ends before it."""
    return min(CHUNK, version.size - number * CHUNK)
