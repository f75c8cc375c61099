"""A bounded folder on the local disk, shared by all processes of a node, of what came over the network.

An entry is a file named by a hash of its key, there whole or not at all. The folder is its own
bookkeeping: a file's time says when it was last wanted, and a ledger of one number, the bytes in the
folder, tells when the least recently wanted ones must go. Locks are those of the kernel, which a
process that is killed does not leave behind.
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
from isotorus.section import Section

_LOCKS = 256
_SECONDS_OF_A_TOUCH = 60  # an entry's time is no finer: most hits then write nothing
_SECONDS_OF_A_PART = 3600  # a part that nobody has written to for so long was left by a killed process

_held: set[int] = set()  # handles of the locks that threads of this process hold
_pinned: dict[Path, int] = {}


def _default_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "isotorus"


class CacheConfig(Section):
    """Where remote data is kept on this node, and how long a store that fails is asked again."""

    folder: Path = Field(default_factory=_default_folder)
    """On a local disk, private to the user; all processes of a node share it."""
    size: ByteSize = Field(ByteSize(100 * 10**9), ge=64 * 10**6)
    """The most it may hold, such as 100GB; what was wanted least recently makes room."""
    patience: float = Field(180.0, ge=0)
    """Seconds for which a request is tried again that fails for a passing reason (timeout, 5xx). A run's
    stopping.hang has to be a minute more."""


class Cache:
    """Entries by key. Whatever the file system refuses is a `UserError` that names the folder."""

    def __init__(self, config: CacheConfig) -> None:
        self.folder = config.folder.expanduser()
        self._limit = int(config.size)

    def read(self, key: str, size: int, start: int, stop: int) -> bytes | None:
        """Bytes [start, stop) of an entry of `size` bytes; None if there is none, or not of that size.

        The entry may be evicted meanwhile: what is open stays readable.
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
        """All bytes of a small entry; None if there is none."""
        try:
            return self._path(key).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._refused(error) from error

    @contextmanager
    def write(self, key: str, size: int) -> Iterator[BinaryIO]:
        """A file for the `size` bytes of an entry, which is there when the block ends well.

        To be called by one holder of the key's `lock` at a time. Raises `UserError` if the disk is
        full or the entry larger than the cache may be.
        """
        path = self._path(key)
        part = path.with_name(f"{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
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
        self._path(key).unlink(missing_ok=True)

    def pin(self, key: str, size: int) -> Path | None:
        """The file of an entry, which is not evicted while this process lives; None as for `read`."""
        path = self._path(key)
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        fcntl.flock(handle, fcntl.LOCK_SH)
        status = os.fstat(handle)
        if status.st_size != size or not status.st_nlink:  # evicted between the two calls
            os.close(handle)
            return None
        self._touch(handle, status)
        if path in _pinned:
            os.close(_pinned[path])
        _pinned[path] = handle
        return path

    @contextmanager
    def lock(self, key: str, *, wait: bool = True) -> Iterator[bool]:
        """Hold the key against all threads and processes; yields whether it is held.

        Keys share locks: hold one at a time.
        """
        name = f"{int(_digest(key)[:8], 16) % _LOCKS:02x}"
        with self._locked(self.folder / "locks" / name, wait) as handle:
            yield handle is not None

    @contextmanager
    def _locked(self, path: Path, wait: bool) -> Iterator[int | None]:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
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
        """Make room, and take it: the part has its full size from the start, so that a scan counts it."""
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
            with part.open("wb") as file:
                file.truncate(size)
            os.pwrite(ledger, b"%-32d" % (used + size), 0)

    def _evict(self, most: int) -> int:
        """Bytes that the folder holds when it holds at most `most`.

        Frees a sixteenth of the cache more than that, so that a scan is rare.
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
        """Time, size and path of every entry and part."""
        for folder in (self.folder / "entries").glob("*"):
            with os.scandir(folder) as files:
                for file in files:
                    with suppress(FileNotFoundError):
                        status = file.stat()
                        yield status.st_mtime, status.st_size, file.path

    def _path(self, key: str) -> Path:
        digest = _digest(key)
        return self.folder / "entries" / digest[:2] / digest[2:]

    def _touch(self, handle: int, status: os.stat_result) -> None:
        if time.time() - status.st_mtime > _SECONDS_OF_A_TOUCH:
            os.utime(handle)

    def _refused(self, error: OSError) -> UserError:
        return from_os_error(error, f"using the cache {self.folder}")


def _digest(key: str) -> str:
    return hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=20).hexdigest()


def _remove(path: str) -> bool:
    """Delete an entry, unless it is pinned or being written."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        if path.endswith(".part") and time.time() - os.fstat(handle).st_mtime < _SECONDS_OF_A_PART:
            return False
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)  # noqa: PTH108  a path by the hundred thousand
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True


def _close_locks_after_fork() -> None:
    """A forked process has the handles of its parent's locks, but not the threads that hold them."""
    for handle in _held:
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_close_locks_after_fork)
