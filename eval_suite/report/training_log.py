"""What a run logged while training, read from its metrics.jsonl."""

from pathlib import Path
from typing import Any

from isotorus import jsonl


def logged(run: Path) -> list[dict[str, Any]]:
    """Return the logged rows of a run by ascending step, the last one of each step; [] without a log."""
    try:
        rows = jsonl.read(run / "metrics.jsonl")
    except OSError:
        return []
    by_step = {row["step"]: row for row in rows if isinstance(row, dict) and "step" in row}
    return [by_step[step] for step in sorted(by_step)]


def at(rows: list[dict[str, Any]], key: str, step: int, window: int) -> float | None:
    """Return the mean of a logged quantity over the `window` steps up to `step`, as single values are noisy.

    None where no row in the window has the quantity.
    """
    values = [
        row[key]
        for row in rows
        if step - window < row["step"] <= step and isinstance(row.get(key), int | float)
    ]
    return sum(values) / len(values) if values else None
