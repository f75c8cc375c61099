"""Walk through a folder and its subfolders, and name what else lies there, such as pipes and broken links."""

import errno
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from isotorus.foreign_files import kind_of

NOWHERE = "link that leads nowhere"
ELSEWHERE = "link to a folder that is read elsewhere"
AROUND = "link to a folder around it"
HIDDEN = "hidden folder"
COMPANION = "._"
"""Beginning of the names of files in which macOS keeps attributes of other files, such as ._a.jpg for
a.jpg."""
COMPANIONS = "companion file of macOS (._…)"
_PLURALS = {
    COMPANIONS: "companion files of macOS (._…)",
    NOWHERE: "links that lead nowhere",
    ELSEWHERE: "links to folders that are read elsewhere",
    AROUND: "links to folders around them",
}


class Visit(NamedTuple):
    """A folder of a walk."""

    path: Path
    subfolders: list[str]
    """The caller may remove names from it to skip them."""
    files: Iterable[str]
    """Names of regular files and of links to such, in any order; the folder is read again for them, so that
    memory does not grow with their number."""
    passed: list[tuple[str, str]]
    """Name and kind of everything else, such as named pipes and links that lead nowhere."""


def walk(top: Path) -> Iterator[Visit]:
    """Yield each real folder from `top` on once, and follow symbolic links to folders outside.

    Links come last, so that a folder is visited by its own name if it has one below `top`. Links to a folder
    that contains the link are not followed. Raises OSError if a folder cannot be read.
    """
    folders, links, seen = [top], list[Path](), set[tuple[int, int]]()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        status = folder.stat()
        seen.add((status.st_dev, status.st_ino))
        visit = _look(folder)
        yield visit
        for name in visit.subfolders:
            (links if (folder / name).is_symlink() else folders).append(folder / name)
        while not folders and links and (kind := _link(links[0], seen)):
            link = links.pop(0)
            yield Visit(link.parent, [], [], [(link.name, kind)])


def counted(passed: Counter[str]) -> str:
    """Return how many there are of each kind, as in "2 named pipes, 1 hidden folder"."""
    return ", ".join(
        f"{count} {kind if count == 1 else _PLURALS.get(kind, f'{kind}s')}"
        for kind, count in sorted(passed.items())
    )


def leads_nowhere(error: OSError) -> bool:
    """Return whether a file could not be found, also because links lead to each other in a circle."""
    return error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR)


def _look(folder: Path) -> Visit:
    visit = Visit(folder, [], _files(folder), [])
    with os.scandir(folder) as entries:
        for entry in entries:
            kind = _kind(entry)
            if kind == "folder":
                visit.subfolders.append(entry.name)
            elif kind:
                visit.passed.append((entry.name, kind))
    visit.subfolders.sort()
    visit.passed.sort()
    return visit


def _files(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        yield from (entry.name for entry in entries if not _kind(entry))


def _kind(entry: os.DirEntry[str]) -> str | None:
    """Return what an entry of a folder is or leads to; None for a regular file."""
    if entry.is_file(follow_symlinks=False):
        return None
    try:
        return kind_of(entry.stat().st_mode)
    except OSError as error:
        if not leads_nowhere(error):
            raise
        return NOWHERE


def _link(link: Path, seen: set[tuple[int, int]]) -> str | None:
    """Return why a link to a folder is not followed; None if it is."""
    status = link.stat()
    if (status.st_dev, status.st_ino) in seen:
        return ELSEWHERE
    return AROUND if link.parent.resolve().is_relative_to(link.resolve()) else None
