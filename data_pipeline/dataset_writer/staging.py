"""DEST/.packing: the finished work of a packing that is not published yet, and a lock.

The folder contains the `State` and, for every set, each finished shard with its index rows and its
`shard.Staged` record. The lock keeps a second process from packing into the same DEST.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from data_pipeline.decoders.intensity import NONE, Intensity
from data_pipeline.decoders.pixels import PixelRules
from isotorus.errors import UserError
from isotorus.files import atomic
from isotorus.section import Section

STAGING = ".packing"
"""Name of the staging folder."""
_STATE = "packing.json"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP}


class Base(Section):
    """A set before shards are added to it."""

    generation: int
    """Its newest generation; 0 for a new set."""
    next_shard: int
    """Number of the first new shard."""


class State(Section):
    """The record of an unfinished packing."""

    plan: str
    """Hash of what is to be packed: files, sizes, labels and options."""
    bases: dict[str, Base]
    """The sets that shards are added to, by name."""
    channels: int | None
    """The number of channels that was asked for."""
    pixel_rules: PixelRules = 1
    """Version of the rules by which files become pixels."""
    intensity: Intensity = NONE
    """How the numbers of the images become brightness."""
    complete: bool = False
    """Whether all shards are finished and accepted, so that only publishing is left."""

    @property
    def is_append(self) -> bool:
        """Whether images are added to an existing data set."""
        return any(base.generation for base in self.bases.values())


@contextmanager
def hold(dest: Path, *, shared: bool = False) -> Iterator[Path]:
    """Lock the staging folder of `dest` for this process, and yield it; it is deleted if no packing began.

    Several processes may hold a `shared` lock at the same time; they leave the folder. Raises `UserError` if
    another process holds the lock.
    """
    created = not dest.exists()
    folder = dest / STAGING
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as lock:  # a shared lock needs a file that can be read
        try:
            fcntl.lockf(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise _busy(dest) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:  # file systems without locks are common on clusters
                raise
        if not (folder / "lock").exists():  # another process has finished and removed the folder meanwhile
            raise _busy(dest)
        try:
            yield folder
        finally:
            if not shared and not (folder / _STATE).exists():
                clear(folder)
                if created and not any(dest.iterdir()):
                    dest.rmdir()


def read(folder: Path) -> State | None:
    """Return the record of the packing that an earlier call has begun in `folder`; None if no call has.

    Raises `UserError` if the record is of another version.
    """
    try:
        return State.model_validate_json((folder / _STATE).read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError:
        raise other_packing(folder) from None


def write(folder: Path, state: State) -> None:
    """Write the record of the packing."""
    with atomic(folder / _STATE) as file:
        file.write(state.model_dump_json().encode())


def write_first(folder: Path, state: State) -> State:
    """Write the record of the packing unless there is one, and return the one that is there.

    Of several processes that call this at the same time, on several nodes too, one writes it.
    """
    handle, name = tempfile.mkstemp(prefix=f".{_STATE}.", dir=folder)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(state.model_dump_json())
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(name, folder / _STATE)
    finally:
        Path(name).unlink()
    begun = read(folder)
    assert begun is not None
    return begun


def clear(folder: Path) -> None:
    """Delete the staging folder; its record goes first, so that a partly deleted folder is not continued."""
    (folder / _STATE).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def other_packing(folder: Path) -> UserError:
    """Return the error for a staging folder with an unfinished packing of other images or options."""
    return UserError(
        f"{folder} holds an unfinished packing of other images, labels or options; "
        "finish it with its own command, or delete that folder"
    )


def _busy(dest: Path) -> UserError:
    """Return the error for a folder that another process is packing into."""
    return UserError(
        f"another process is packing into {dest}; wait until it has ended, or choose another folder"
    )
