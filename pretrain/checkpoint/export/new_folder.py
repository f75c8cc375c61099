"""The folder that an export writes: it appears whole, or not at all."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from isotorus.errors import UserError, from_os_error
from isotorus.files import sync


def refuse_taken(dest: Path) -> None:
    """Raise UserError if `dest` exists and is not an empty folder."""
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise UserError(f"{dest} exists already; name a folder that does not, or remove it")


@contextmanager
def new_folder(dest: Path) -> Iterator[Path]:
    """Yield a hidden folder beside `dest`, which gets that name when the block ends without an exception.

    Raises UserError if `dest` is taken, and where the disk refuses.
    """
    refuse_taken(dest)
    partial = dest.absolute().with_name(f".{dest.absolute().name}.{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        yield partial
        for path in (*partial.rglob("*"), partial):
            sync(path)
        partial.replace(dest)
    except (OSError, SafetensorError, RuntimeError) as error:
        if cause := _refused_by_disk(error, partial):
            raise from_os_error(cause, f"exporting to {dest}") from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def require_room(folder: Path, size: int) -> None:
    """Raise OSError unless the disk of a folder takes a file of `size` bytes.

    torch ends the whole process, by an error in a destructor, if the disk is full while it writes a program.
    """
    reserved = folder / "reserved"
    try:
        with reserved.open("xb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    finally:
        reserved.unlink(missing_ok=True)


def _refused_by_disk(error: Exception, partial: Path) -> OSError | None:
    """Return the error of the disk behind an error of a library; None if there is none.

    Libraries say in words of their own that a disk is full.
    """
    if isinstance(error, OSError):
        return error
    if "os error 28" in str(error) or "No space left" in str(error):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return None
