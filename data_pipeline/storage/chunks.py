"""Remote shards through the local cache, in chunks: one ranged read each, whoever on the node wants them.

A chunk's key holds the shard's size and tag, so that one that was replaced does not give old bytes.
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
_THREADS = 2
_WAITING = 256
"""Chunks that may wait to be prefetched; more are left to the read itself."""


class _Answer(BaseModel):
    """What a store said of a shard, and when."""

    asked: float
    """Seconds since the epoch."""
    version: Version


class Chunks:
    """Reads shards by URL. A reader asks once for the version of each, and holds on to it."""

    def __init__(self, config: CacheConfig) -> None:
        self._cache = Cache(config)
        self._patience = config.patience
        self._opened = time.time()
        self._version = functools.lru_cache(2**16)(self._ask_version)
        self._prefetcher: _Prefetcher | None = None

    def size(self, url: str) -> int:
        return self._version(url).size

    def read(self, url: str, offset: int, size: int) -> bytes:
        version = self._version(url)
        parts = []
        for number in range(offset // CHUNK, -(-(offset + size) // CHUNK)):
            start = max(offset - number * CHUNK, 0)
            stop = min(offset + size - number * CHUNK, CHUNK)
            parts.append(self._read_chunk(url, version, number, start, stop))
        return b"".join(parts)

    def prefetch(self, url: str, offset: int, size: int) -> None:
        """Bring the chunks of a range into the cache in the background; errors are left to the read."""
        if self._prefetcher is None or self._prefetcher.process != os.getpid():
            self._prefetcher = _Prefetcher(self)
        for number in range(offset // CHUNK, -(-(offset + size) // CHUNK)):
            self._prefetcher.request(url, number)

    def forget(self, url: str, offset: int, size: int) -> None:
        """Drop the chunks of a range from the cache; `UserError` if the shard is another than it was."""
        version = self._version(url)
        for number in range(offset // CHUNK, -(-(offset + size) // CHUNK)):
            self._cache.drop(_key(url, version, number))
        self._cache.drop(_version_key(url))
        if remote.version(url, self._patience) != version:
            raise remote.changed(url)

    def download_if_missing(self, url: str, number: int) -> None:
        """Have a chunk in the cache, unless somebody is fetching it just now; one attempt."""
        version = self._version(url)
        key, size = _key(url, version, number), _chunk_size(version, number)
        if size <= 0 or self._cache.read(key, size, 0, 0) is not None:
            return
        with self._cache.lock(key, wait=False) as held:
            if held and self._cache.read(key, size, 0, 0) is None:
                self._download(url, key, number, size, patience=0)

    def _read_chunk(self, url: str, version: Version, number: int, start: int, stop: int) -> bytes:
        key, size = _key(url, version, number), _chunk_size(version, number)
        data = self._cache.read(key, size, start, stop)
        if data is None:
            with self._cache.lock(key):
                data = self._cache.read(key, size, start, stop)
                if data is None:
                    data = self._download(url, key, number, size, self._patience)[start:stop]
        return data

    def _download(self, url: str, key: str, number: int, size: int, patience: float) -> bytes:
        start = number * CHUNK
        (data,) = remote.read(url, [(start, start + size)], patience)
        with self._cache.write(key, size) as file:
            file.write(data)
        return data

    def _ask_version(self, url: str) -> Version:
        """From the store, unless a process of this node has asked since this reader was opened."""
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
    """Threads of one process that bring chunks; daemons, so that they never delay its end."""

    def __init__(self, chunks: Chunks) -> None:
        self.process = os.getpid()
        self._chunks = chunks
        self._queue: queue.Queue[tuple[str, int]] = queue.Queue(_WAITING)
        self._requested: set[tuple[str, int]] = set()
        for _ in range(_THREADS):
            threading.Thread(target=self._work, daemon=True).start()

    def request(self, url: str, number: int) -> None:
        chunk = (url, number)
        if chunk in self._requested:
            return
        self._requested.add(chunk)
        try:
            self._queue.put_nowait(chunk)
        except queue.Full:
            self._requested.discard(chunk)

    def _work(self) -> None:
        while True:
            chunk = self._queue.get()
            with suppress(Exception):  # the read itself will meet it, and say it
                self._chunks.download_if_missing(*chunk)
            self._requested.discard(chunk)


def _key(url: str, version: Version, number: int) -> str:
    return f"chunk {number} {version.size} {version.tag} {url}"


def _version_key(url: str) -> str:
    return f"version {url}"


def _chunk_size(version: Version, number: int) -> int:
    return min(CHUNK, version.size - number * CHUNK)
