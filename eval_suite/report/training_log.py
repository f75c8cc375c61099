"""What a run logged over its steps, read from metrics.jsonl."""

import json
from pathlib import Path
from typing import Any


def logged(run: Path) -> list[dict[str, Any]]:
    """Logged rows by ascending step, the last one of each; a line cut by a kill is passed over."""
    by_step: dict[float, dict[str, Any]] = {}
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            row = json.loads(line)
            by_step[row["step"]] = row
        except (ValueError, KeyError, TypeError):
            continue
    return [by_step[step] for step in sorted(by_step)]


def at(rows: list[dict[str, Any]], key: str, step: int, window: int) -> float | None:
    """A quantity's mean over the `window` steps up to `step`, as single ones are noisy; None without any."""
    values = [
        row[key]
        for row in rows
        if step - window < row["step"] <= step and isinstance(row.get(key), int | float)
    ]
    return sum(values) / len(values) if values else None
