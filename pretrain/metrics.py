"""metrics.jsonl: one JSON object a logged step, the truth that everything else mirrors."""

import json
import math
from pathlib import Path
from typing import Any


class MetricsFile:
    """Appends to `path`; on resume, lines after `step` are dropped, since they will be written again."""

    def __init__(self, path: Path, step: int) -> None:
        kept = [row for row in read(path) if row["step"] <= step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(line(row) for row in kept))
        temporary.rename(path)
        self._file = path.open("a", buffering=1)

    def write(self, row: dict[str, Any]) -> None:
        self._file.write(line(row))

    def close(self) -> None:
        self._file.close()


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines; a last line cut by a kill is passed over."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
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
