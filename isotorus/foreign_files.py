"""Read files of a folder that somebody else may have made: a run, a checkpoint, a model.

Such a folder gives weights, the description of an architecture, and numbers. Nothing in it names a file, an
address, a store, a program or a result. Here is what holds for every file that is read there:

- it is a regular file: a pipe or a device would be waited for, or never end;
- it lies in the folder: a link that leads out of it would show one of the reader's own files;
- it has a bounded size, and what is JSON has a bounded depth and text that can be written again.

What descriptions may say is in `pretrain.models.timm_arguments`, which store results are sent to in
`eval_suite.tracking`, and whose results are reused in `eval_suite.inputs.seals`.
"""

import errno
import io
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isotorus.errors import UserError

LONGEST_JSON = 2**24
"""Bytes of a file of JSON."""
DEEPEST = 50
"""Levels of lists and mappings in each other."""


class Refused(UserError):
    """A file that is not read: a link out of its folder, no regular file, too large, or not JSON."""


class Special(OSError):
    """What is no regular file, such as a named pipe; `strerror` says what it is."""


def kind_of(mode: int) -> str | None:
    """Return the kind of a file from its mode, such as "named pipe"; None for a regular file."""
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket"}
    return None if stat.S_ISREG(mode) else kinds.get(stat.S_IFMT(mode), "device")


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a regular file, which may be reached by a link; never waits.

    Raises Special for anything else, and OSError for a file that is missing or may not be read.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if kind := kind_of(os.fstat(handle).st_mode):
            raise Special(errno.EINVAL, f"no regular file but a {kind}", os.fspath(path))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def inside(path: Path, folder: Path) -> Path:
    """Return where a path leads; raises Refused if a link on the way leads out of `folder`.

    `folder` may itself be a link, because the reader has named it.
    """
    try:
        place, home = path.resolve(), folder.resolve()
    except (OSError, RuntimeError, ValueError):  # links in a circle, a NUL in the name
        raise Refused(f"{path} leads nowhere; remove that link") from None
    if not place.is_relative_to(home):
        raise Refused(f"{path} is a link that leads out of {folder}; put a copy of the file there (cp -L)")
    return place


def open_binary(path: Path, folder: Path | None = None) -> io.BufferedReader:
    """Open a regular file in `folder`, by default the one that the path names; never waits.

    Raises Refused, and OSError for a file that is missing or may not be read.
    """
    try:
        return open_regular(inside(path, path.parent if folder is None else folder))
    except Special as error:
        raise Refused(f"{path} is {error.strerror}; remove it") from None


def read_bytes(path: Path, folder: Path | None = None, most: int = LONGEST_JSON) -> bytes:
    """Read a file of at most `most` bytes; errors are those of `open_binary`."""
    with open_binary(path, folder) as file:
        # A read takes as much memory as it may return.
        content = file.read(min(most, os.fstat(file.fileno()).st_size) + 1)
    if len(content) > most:
        raise Refused(f"{path} has more than {most:,} bytes; that is not what this program writes")
    return content


def read_text(path: Path, folder: Path | None = None, most: int = LONGEST_JSON) -> str:
    """Read a text of at most `most` bytes; bytes that are no UTF-8 become replacement characters."""
    return read_bytes(path, folder, most).decode(errors="replace")


def read_json(path: Path, folder: Path | None = None, most: int = LONGEST_JSON) -> Any:
    """Read a file of JSON; raises Refused also for what is not JSON, and OSError."""
    content = read_bytes(path, folder, most)
    try:
        value = json.loads(content)
        for text in _texts(value):
            text.encode()
    except RecursionError:
        raise Refused(f"{path} is not JSON of at most {DEEPEST} levels; save it again") from None
    except ValueError as error:
        said = " ".join(str(error).split())[:200]
        raise Refused(f"{path} is not JSON ({said}); save it again") from None
    return value


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts and names in a value; raises RecursionError if it is too deep."""
    level = [value]
    for _ in range(DEEPEST):
        following: list[Any] = []
        for each in level:
            if isinstance(each, str):
                yield each
            elif isinstance(each, dict):
                yield from each
                following += each.values()
            elif isinstance(each, list):
                following += each
        if not following:
            return
        level = following
    raise RecursionError
