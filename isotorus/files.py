"""Write files that are complete or absent, even after a crash."""

import contextlib
import fcntl
import glob
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_LOCK = "in-use.lock"
"""The file that the process of a temporary folder keeps locked."""


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that is synced and renamed to `path` when the block ends without an exception."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)  # a link there would lead the writing elsewhere
    try:
        with temporary.open("xb") as file:
            with contextlib.suppress(OSError):  # file systems without locks
                fcntl.flock(file, fcntl.LOCK_EX)  # says to `remove_leftovers` that it is being written
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sweep(folder: Path, names: Iterable[str]) -> None:
    """Delete the temporary files that killed processes left when they wrote files with these names.

    No process may be writing these files at the moment.
    """
    for name in names:
        for unfinished in folder.glob(f".{glob.escape(name)}.*"):
            unfinished.unlink()


def remove_leftovers(folder: Path, names: Iterable[str]) -> None:
    """Delete the temporary files that killed processes left when they wrote files with these names.

    The names may be patterns such as `*.npz`. Files that a process is writing at the moment stay.
    """
    for unfinished in {path for name in names for path in folder.glob(f".{name}.*")}:
        writer = unfinished.name.rpartition(".")[2]
        if not writer.isdecimal() or unfinished.is_symlink() or not unfinished.is_file():
            continue
        with contextlib.suppress(OSError), unfinished.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unfinished.unlink()


@contextmanager
def temporary_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Make an empty folder in `parent` that exists until the end of the block.

    Its name begins with `prefix`. Folders with this prefix that killed processes left there are deleted
    first; a lock beside the files of each says that its process lives.
    """
    _remove_left_folders(parent, prefix)
    while True:
        home = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        with (home / _LOCK).open("xb") as lock:
            with contextlib.suppress(OSError):  # file systems without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            # Another process may have deleted the folder between making and locking it.
            if not (home / _LOCK).exists():
                continue
            try:
                folder = home / "files"
                folder.mkdir()
                yield folder
            finally:
                shutil.rmtree(home, ignore_errors=True)
            return


def _remove_left_folders(parent: Path, prefix: str) -> None:
    """Delete the folders that `temporary_folder` made in processes that no longer live."""
    for folder in parent.glob(f"{glob.escape(prefix)}*/"):
        if folder.is_symlink() or (folder / _LOCK).is_symlink():
            continue
        # A folder without the lock is being made at the moment, or is somebody else's.
        with contextlib.suppress(OSError), (folder / _LOCK).open("rb+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)


def as_new(path: Path) -> None:
    """Give a file the permissions of a new file of this user; safetensors makes files for its user alone."""
    probe = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        probe.touch(exist_ok=False)
        path.chmod(stat.S_IMODE(probe.stat().st_mode))
    finally:
        probe.unlink(missing_ok=True)


def private_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing, for its user alone."""
    if not path.is_dir():
        private_folder(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)


def sync(path: Path) -> None:
    """Force the bytes of a file, or the entries of a folder, to the disk, where they survive a crash."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
