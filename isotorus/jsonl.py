"""Read and write files of JSON lines: one JSON object on each line."""

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from isotorus import foreign_files
from isotorus.files import atomic

_LONGEST = 2**31
"""Bytes of a file that is read whole."""


class StepLog:
    """A file with one row for each logged step; every row has the key "step"."""

    def __init__(self, path: Path, step: int) -> None:
        """Drop the rows after `step`: a run that resumes there will write them again."""
        replace(path, (row for row in read(path, "step") if row["step"] <= step))
        self.path = path

    def write(self, row: dict[str, Any]) -> None:
        append(self.path, [row])

    def sync(self) -> None:
        """Force the rows to the disk, so that a checkpoint never exists without the rows before it."""
        if self.path.exists():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())


def append(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows to a file. If the disk refuses them, append none and raise OSError."""
    text = "".join(map(line, rows)).encode()
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        try:
            while text:
                text = text[file.write(text) :]
        except OSError:
            os.ftruncate(file.fileno(), before)
            raise


def replace(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Replace the contents of a file by these rows, atomically."""
    text = "".join(map(line, rows)).encode()
    with atomic(path) as file:
        file.write(text)


def read(path: Path, key: str = "") -> list[dict[str, Any]]:
    """Return all rows, without the lines that a kill or a crash left incomplete or damaged.

    With a `key`, only those that have a whole number there. A missing file has no rows. Raises UserError for
    what is no regular file, and for a link out of its folder.
    """
    try:
        content = foreign_files.read_bytes(path, most=_LONGEST)
    except FileNotFoundError:
        return []
    rows = []
    for line in content.splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and (not key or type(row.get(key)) is int):
            rows.append(row)
    return rows


def read_from(path: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """Return the rows of all complete lines from byte `offset` on, and the offset after the last of them."""
    with path.open("rb") as file:
        file.seek(offset)
        text, newline, _ = file.read().rpartition(b"\n")
    return [json.loads(line) for line in text.splitlines()], offset + len(text) + len(newline)


def line(row: dict[str, Any]) -> str:
    """Return a row as one line of JSON. NaN and infinity become null, because JSON has no name for them."""
    safe = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(safe, allow_nan=False) + "\n"
