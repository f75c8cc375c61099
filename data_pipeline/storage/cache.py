"""A cache of remote data: a folder on the local disk with a bounded size, shared by all processes of a node.

An entry is a file named by a hash of its key; it is either complete or absent. A file's modification time is
the time of its last use. The file `ledger` holds one number, the bytes in the folder; when the limit would be
exceeded, the entries that were unused for longest are deleted. Locks are kernel locks (flock), which are
released even if a process is killed.

fsspec's caches have no size limit and no locks between processes. diskcache (Apache-2.0) has a limit, but its
locks poll, and they stay locked if their process is killed. Here each download is made once per node even if
several processes wait for it. The two have not been compared in speed.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pydantic import ByteSize, Field

from isotorus.errors import UserError, from_os_error
from isotorus.files import private_folder
from isotorus.paths import LocalPath
from isotorus.section import Section

_LOCKS = 256  # lock files; keys share them by hash
_SECONDS_OF_A_TOUCH = 60  # times of last use are this coarse, so that most reads write nothing
_SECONDS_OF_A_PART = 3600  # older partial files were left by a killed process

_held: set[int] = set()  # handles of the locks held by threads of this process
_pinned: dict[Path, int] = {}  # handles of entries that must not be deleted


def default_folder() -> Path:
    """Return the user's cache folder for this program."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "isotorus"


class CacheConfig(Section):
    """The section `data.cache` of a recipe: where remote data is kept, and how long failing requests are
    repeated.
    """

    folder: LocalPath = Field(default_factory=default_folder)
    """Cache folder on a local disk, private to the user and shared by all processes of the node."""
    size: ByteSize = Field(ByteSize(100 * 10**9), ge=64 * 10**6)
    """Largest size of the cache, for example 100GB; the data that was unused for longest is deleted first."""
    patience: float = Field(180.0, ge=0)
    """Seconds for which a request is repeated if it fails for a temporary reason (timeout, HTTP 5xx). The
    option stopping.hang of a run must be at least a minute longer."""


class Cache:
    """Stores entries by key. Errors of the file system are raised as `UserError` that names the cache
    folder.
    """

    def __init__(self, config: CacheConfig) -> None:
        self.folder = config.folder.expanduser()
        self._limit = int(config.size)

    def read(self, key: str, size: int, start: int, stop: int) -> bytes | None:
        """Return bytes [start, stop) of an entry of `size` bytes; None if it is absent or has another size.

        The entry may be deleted during the read: an open file stays readable.
        """
        path = self._path(key)
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._refused(error) from error
        try:
            status = os.fstat(handle)
            if status.st_size != size:
                return None
            self._touch(handle, status)
            return os.pread(handle, stop - start, start)
        except OSError as error:
            raise self._refused(error) from error
        finally:
            os.close(handle)

    def load(self, key: str) -> bytes | None:
        """Return all bytes of a small entry; None if it is absent."""
        try:
            return self._path(key).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._refused(error) from error

    @contextmanager
    def write(self, key: str, size: int) -> Iterator[BinaryIO]:
        """Yield a file to write the `size` bytes of an entry to; the entry appears when the block ends
        without error.

        The caller must hold the `lock` of the key. Raises `UserError` if the disk is full or if the entry is
        larger than the cache.
        """
        path = self._path(key)
        part = path.with_name(f"{path.name}.part")
        try:
            self._make(path.parent)
            self._reserve(part, size)
            with part.open("r+b") as file:
                yield file
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise self._refused(error) from error
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def drop(self, key: str) -> None:
        """Delete an entry if it exists."""
        self._path(key).unlink(missing_ok=True)

    def pin(self, key: str, size: int) -> Path | None:
        """Return the file of an entry, which stays until this process ends; None if it is absent or has
        another size.
        """
        path = self._path(key)
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        fcntl.flock(handle, fcntl.LOCK_SH)
        status = os.fstat(handle)
        if status.st_size != size or not status.st_nlink:  # deleted before it was locked
            os.close(handle)
            return None
        self._touch(handle, status)
        if path in _pinned:
            os.close(_pinned[path])
        _pinned[path] = handle
        return path

    @contextmanager
    def lock(self, key: str, *, wait: bool = True) -> Iterator[bool]:
        """Hold the lock of a key against all other threads and processes; yields whether it is held.

        Without `wait`, it is not held if somebody else holds it. Different keys may share a lock, so hold
        only one at a time.
        """
        name = f"{int(_digest(key)[:8], 16) % _LOCKS:02x}"
        with self._locked(self.folder / "locks" / name, wait) as handle:
            yield handle is not None

    @contextmanager
    def _locked(self, path: Path, wait: bool) -> Iterator[int | None]:
        """Hold an exclusive kernel lock on a file and yield its handle; None if it is taken and `wait` is
        false.
        """
        try:
            self._make(path.parent)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise self._refused(error) from error
        _held.add(handle)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield None
                return
            except OSError as error:
                raise self._refused(error) from error
            yield handle
        finally:
            _held.discard(handle)
            os.close(handle)

    def _reserve(self, part: Path, size: int) -> None:
        """Make room for `size` bytes and create the partial file, at its full size so that `_scan` counts
        it.
        """
        if size > self._limit:
            raise UserError(
                f"{size} bytes do not fit into the cache {self.folder} of {self._limit} bytes; "
                "give it a larger cache.size"
            )
        with self._locked(self.folder / "ledger", wait=True) as ledger:
            assert ledger is not None
            text = os.pread(ledger, 32, 0)
            used = int(text) if text.strip().isdigit() else None
            if used is None or used + size > self._limit:
                used = self._evict(self._limit - size)
            part.unlink(missing_ok=True)
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.truncate(size)
            os.pwrite(ledger, b"%-32d" % (used + size), 0)

    def _evict(self, most: int) -> int:
        """Delete the entries unused for longest until at most `most` bytes remain; return the bytes that
        remain.

        A further sixteenth of the cache is freed, so that this is rarely needed. Raises `UserError` if
        running processes use too much of the cache.
        """
        entries = sorted(self._scan())
        used = sum(size for _, size, _ in entries)
        if used <= most:
            return used
        for _, size, path in entries:
            if used <= max(most - self._limit // 16, 0):
                break
            if _remove(path):
                used -= size
        if used > most:
            raise UserError(
                f"the cache {self.folder} is full of what running processes use; "
                f"give it a cache.size larger than {self._limit} bytes"
            )
        return used

    def _scan(self) -> Iterator[tuple[float, int, str]]:
        """Yield time of last use, size and path of every entry and every partial file."""
        for folder in (self.folder / "entries").glob("*"):
            with os.scandir(folder) as files:
                for file in files:
                    with suppress(FileNotFoundError):
                        status = file.stat()
                        yield status.st_mtime, status.st_size, file.path

    def _make(self, folder: Path) -> None:
        """Make a folder of the cache for the user alone; one of an earlier version may be open to others."""
        private_folder(folder)
        for ours in (self.folder / name for name in ("entries", "locks")):
            if ours in (folder, folder.parent) and ours.stat().st_mode & 0o077:
                ours.chmod(0o700)

    def _path(self, key: str) -> Path:
        """Return the file of a key."""
        digest = _digest(key)
        return self.folder / "entries" / digest[:2] / digest[2:]

    def _touch(self, handle: int, status: os.stat_result) -> None:
        """Record that an entry is used now."""
        if time.time() - status.st_mtime > _SECONDS_OF_A_TOUCH:
            os.utime(handle)

    def _refused(self, error: OSError) -> UserError:
        """Return the `UserError` for an error of the file system."""
        return from_os_error(error, f"using the cache {self.folder}")


def _digest(key: str) -> str:
    """Return the hash that names a key's file."""
    return hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=20).hexdigest()


def _remove(path: str) -> bool:
    """Delete an entry unless it is pinned or being written; return whether it no longer exists."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        if path.endswith(".part") and time.time() - os.fstat(handle).st_mtime < _SECONDS_OF_A_PART:
            return False
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)  # noqa: PTH108  faster than pathlib for 100,000 files
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True


def _close_locks_after_fork() -> None:
    """Close the handles of locks that a forked process inherits: the threads that hold them are in its
    parent.
    """
    for handle in _held:
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_close_locks_after_fork)
