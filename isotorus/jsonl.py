"""metrics.jsonl: one JSON object a logged step, the truth that everything else mirrors."""

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from isotorus.files import atomic


class MetricsFile:
    """Appends to `path`; on resume, lines after `step` are dropped, since they will be written again."""

    def __init__(self, path: Path, step: int) -> None:
        replace(path, (row for row in read(path) if row["step"] <= step))
        self.path = path

    def write(self, row: dict[str, Any]) -> None:
        append(self.path, [row])

    def sync(self) -> None:
        """Have what was written reach the disk, so that no checkpoint is there without its rows."""
        if self.path.exists():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())


def append(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Add rows to a file, all of them or, where the disk refuses, none; raises OSError then."""
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
    """Make these rows the whole file, at once."""
    text = "".join(map(line, rows)).encode()
    with atomic(path) as file:
        file.write(text)


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines; what a kill or a crash has cut or garbled is passed over."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_bytes().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def read_from(path: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """The whole lines from byte `offset` on, and the offset behind them."""
    with path.open("rb") as file:
        file.seek(offset)
        text, newline, _ = file.read().rpartition(b"\n")
    return [json.loads(line) for line in text.splitlines()], offset + len(text) + len(newline)


def line(row: dict[str, Any]) -> str:
    # JSON has no NaN; null keeps the line readable by every parser.
    safe = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(safe, allow_nan=False) + "\n"
