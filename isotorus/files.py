"""Files that are there whole or not at all, also after a crash."""

import glob
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file for writing that becomes `path`, durably, if the block ends well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sweep(folder: Path, names: Iterable[str]) -> None:
    """Delete what killed processes have left of files of these names; nobody may be writing them now."""
    for name in names:
        for unfinished in folder.glob(f".{glob.escape(name)}.*"):
            unfinished.unlink()


def sync(path: Path) -> None:
    """Make a file's bytes, or the names in a folder, durable: they are there after a crash."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
