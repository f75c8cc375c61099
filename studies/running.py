"""What studies that train many runs have in common: their arguments, and calls of this Python."""

import os
import resource
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

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


def python(folder: Path, arguments: list[str]) -> int:
    """Run this Python in a folder, with the modules of this checkout; return its exit code."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, check=False).returncode


def cpu_seconds() -> float:
    """Return the CPU time of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
