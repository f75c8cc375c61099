"""Find tar files on a disk or in an object store, and read them from beginning to end."""

import io
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.storage import reader, remote
from data_pipeline.storage.cache import CacheConfig
from data_pipeline.storage.folders import HIDDEN, walk
from data_pipeline.storage.tar_reader import printable
from isotorus.errors import UserError, from_os_error
from isotorus.foreign_files import open_regular

_ENDING = ".tar"
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4")
_READ_AT_ONCE = 8 * 2**20
_PATIENCE = CacheConfig().patience


@dataclass(frozen=True, slots=True)
class TarFile:
    """A tar file and its size."""

    path: str
    """An absolute path or a URL."""
    size: int
    """Size in bytes."""


def find(sources: Iterable[str], passed: Counter[str] | None = None) -> list[TarFile]:
    """Return the tar files among `sources` and in those that are folders, each once, sorted by path.

    Hidden files and folders are left out. Counts in `passed` hidden folders, and what is neither a file nor a
    folder. Raises `UserError` if a source contains no tar file, or a compressed one that is not there
    uncompressed too.
    """
    files: dict[str, int] = {}
    passed = Counter() if passed is None else passed
    for source in sources:
        reader.refuse_password(source)
        sizes = _find_remote(source) if reader.is_remote(source) else _find_local(source, passed)
        compressed = [p for p in sizes if p.endswith(_COMPRESSED) and _unpacked(p) not in sizes]
        if compressed:
            raise UserError(
                f"{shown(compressed[0])} is compressed, and so nothing in it can be read by itself; "
                f"unpack it first (gunzip, unxz, unzstd){_more(compressed)}"
            )
        tars = {path: size for path, size in sizes.items() if path.endswith(_ENDING)}
        if not tars:
            raise UserError(
                f"{shown(source)}: no {_ENDING} file there; give tars or the folder that holds them"
            )
        for path in tars:
            reader.refuse_password(path)  # a listing may sign the addresses that it gives
        files |= tars
    return [TarFile(path, files[path]) for path in sorted(files)]


def open_stream(path: str) -> io.BufferedReader:
    """Open a local or remote file for reading from beginning to end. Raises `UserError` or OSError."""
    if reader.is_remote(path):
        return io.BufferedReader(_RemoteFile(path), _READ_AT_ONCE)
    with open_regular(path) as opened:
        return io.BufferedReader(io.FileIO(os.dup(opened.fileno())), _READ_AT_ONCE)


def size_of(path: str) -> int:
    """Return the size of a file in bytes. Raises `UserError` or OSError if the file does not exist."""
    if reader.is_remote(path):
        return remote.version(path, _PATIENCE).size
    return Path(path).stat().st_size


def shown(path: str) -> str:
    """Return a path or URL for messages: on one line, and without the secret parts of a URL."""
    return printable(remote.shown(path) if reader.is_remote(path) else path)


class _RemoteFile(io.RawIOBase):
    """An object in a store as a file object; reading raises `UserError` if the object is replaced
    meanwhile.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._version = remote.version(url, _PATIENCE)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._version.size}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        stop = min(self._position + len(buffer), self._version.size)
        if stop <= self._position:
            if remote.version(self._url, _PATIENCE) != self._version:
                raise remote.changed(self._url)
            return 0
        (data,) = remote.read(self._url, [(self._position, stop)], _PATIENCE)
        buffer[: len(data)] = data
        self._position = stop
        return len(data)


def _find_local(source: str, passed: Counter[str]) -> dict[str, int]:
    """Return the sizes in bytes of the tar files that a local path is or contains, by path."""
    path = Path(os.path.abspath(source))  # noqa: PTH100  keeps symbolic links
    try:
        files = _tars_below(path, passed) if path.is_dir() else [path]
        statuses = {str(file): file.stat() for file in files}
    except OSError as error:
        raise from_os_error(error, f"looking for tars in {shown(source)}") from error
    return {file: status.st_size for file, status in statuses.items() if stat.S_ISREG(status.st_mode)}


def _tars_below(path: Path, passed: Counter[str]) -> Iterator[Path]:
    """Yield tar files, compressed ones too, in a folder and its subfolders, without hidden ones."""
    for folder, subfolders, names, special in walk(path):
        passed.update(kind for _, kind in special)
        passed[HIDDEN] += sum(name.startswith(".") for name in subfolders)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            if name.endswith((_ENDING, *_COMPRESSED)) and not name.startswith("."):
                yield folder / name


def _find_remote(source: str) -> dict[str, int]:
    """Return the sizes in bytes of the tar files that a URL is or contains, by URL."""
    if source.endswith((_ENDING, *_COMPRESSED)):
        return {source: size_of(source)}
    return {
        url: size
        for url, size in remote.list_objects(source, _PATIENCE).items()
        if not any(part.startswith(".") for part in url.removeprefix(source).split("/"))
    }


def _unpacked(path: str) -> str:
    """Return the name of a compressed tar file after it is uncompressed."""
    for ending in _COMPRESSED:
        if path.endswith(ending):
            return path.removesuffix(ending) + _ENDING
    return path


def _more(paths: list[str]) -> str:
    """Say how many further files are compressed."""
    return f" ({len(paths) - 1} more are compressed)" if len(paths) > 1 else ""
