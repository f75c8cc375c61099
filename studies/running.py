"""What studies that train many runs have in common: arguments, calls of this Python, rows, locks."""

import contextlib
import fcntl
import os
import resource
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from isotorus import jsonl
from isotorus.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def folder_and_names(known: Collection[str]) -> tuple[Path, list[str]]:
    """Return the folder that the command line names, and the names after it, by default all that are known.

    Raises UserError for a name that is not known.
    """
    if len(sys.argv) < 2:
        raise UserError(f"expected a folder with packed images, and perhaps some of {', '.join(known)}")
    names = sys.argv[2:] or list(known)
    for unknown in set(names) - set(known):
        raise UserError(f"there is no {unknown!r}; name some of {', '.join(known)}")
    return Path(sys.argv[1]).resolve(), names


def python(folder: Path, arguments: list[str], log: Path | None = None, held: int | None = None) -> int:
    """Run this Python in a folder, with the modules of this checkout; return its exit code.

    What it prints is appended to `log`, if one is given. `held` is a descriptor of `claim`, which the new
    process then holds as well.
    """
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(log.open("ab")) if log else None
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            check=False,
            stdout=output,
            stderr=output,
            pass_fds=[] if held is None else [held],
        ).returncode


def cpu_seconds() -> float:
    """Return the CPU time of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def claim(file: Path) -> Iterator[int | None]:
    """Lock a file for the length of the block, and yield its descriptor; None if another process holds it.

    A child that is given the descriptor keeps the file locked for as long as it lives, even if this process
    is killed.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield stream.fileno()


def add_row(file: Path, row: dict[str, Any]) -> None:
    """Append a row to a file of JSON lines to which other processes append too.

    If one of them was killed while it wrote, its incomplete line stays a line of its own.
    """
    with file.open("a+b") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        if size := stream.seek(0, os.SEEK_END):
            stream.seek(size - 1)
            if stream.read(1) != b"\n":
                stream.write(b"\n")
                stream.flush()
        jsonl.append(file, [row])
