"""DEST/.packing: what a packing has finished before it is published, and a lock that keeps others out.

It holds `State` and, for every set, each finished shard with its index rows and its `shard.Staged`.
"""

import errno
import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from isotorus.errors import UserError
from isotorus.files import atomic
from isotorus.section import Section

STAGING = ".packing"
_STATE = "packing.json"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP}


class Base(Section):
    """A set that shards are added to, as it was when the packing began."""

    generation: int
    """0 for a new set."""
    next_shard: int
    """The number that the first new shard gets."""


class State(Section):
    """What an unfinished packing is about."""

    plan: str
    """Fingerprint of its plan."""
    bases: dict[str, Base]
    """By name of the set."""
    channels: int | None
    """What was asked for."""
    complete: bool = False
    """Whether all shards are finished and accepted, so that nothing is left to be done but publishing."""

    @property
    def is_append(self) -> bool:
        return any(base.generation for base in self.bases.values())


@contextmanager
def hold(dest: Path) -> Iterator[Path]:
    """The staging folder of `dest`, for one packing at a time; it stays if a packing has begun in it.

    Raises `UserError` if another process holds it.
    """
    created = not dest.exists()
    folder = dest / STAGING
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise _busy(dest) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:  # such a file system cannot tell; most clusters have one
                raise
        if not (folder / "lock").exists():  # removed by one that has finished since
            raise _busy(dest)
        try:
            yield folder
        finally:
            if not (folder / _STATE).exists():
                clear(folder)
                if created and not any(dest.iterdir()):
                    dest.rmdir()


def read(folder: Path) -> State | None:
    """What an earlier call has begun here; None if nothing is."""
    try:
        return State.model_validate_json((folder / _STATE).read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError:
        raise other_packing(folder) from None  # of another version


def write(folder: Path, state: State) -> None:
    with atomic(folder / _STATE) as file:
        file.write(state.model_dump_json().encode())


def clear(folder: Path) -> None:
    """Forget the packing; its state first, so that half a staging folder is none."""
    (folder / _STATE).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def other_packing(folder: Path) -> UserError:
    return UserError(
        f"{folder} holds an unfinished packing of other images, labels or options; "
        "finish it with its own command, or delete that folder"
    )


def _busy(dest: Path) -> UserError:
    return UserError(
        f"another process is packing into {dest}; wait till it has ended, or choose another folder"
    )
