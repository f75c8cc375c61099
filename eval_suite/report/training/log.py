"""What a run logged while training, read from its metrics.jsonl."""

from pathlib import Path
from typing import Any

import numpy as np

from isotorus import jsonl
from isotorus.errors import UserError

_LARGEST = 1e300
"""Largest absolute value of a logged number, because JSON may hold whole numbers that no float holds."""
WINDOW = 0.01
"""Share of the run's steps over which `loss_at` averages, because the losses of single steps are noisy."""


def logged(run: Path) -> list[dict[str, Any]]:
    """Return the logged numbers of a run by ascending step, the last row of each step; [] without a log."""
    try:
        rows = jsonl.read(run / "metrics.jsonl", "step")
    except (OSError, UserError):
        return []
    by_step = {row["step"]: row for row in rows if _is_number(row["step"])}
    return [
        {key: value for key, value in by_step[step].items() if _is_number(value)} for step in sorted(by_step)
    ]


def loss_at(run: Path, step: int) -> float | None:
    """Return the training loss at a step of a run, averaged over the last 1 % of the run's steps before it.

    None if nothing was logged, or only before or only after this step.
    """
    rows = logged(run)
    window = max(1, round(WINDOW * rows[-1]["step"])) if rows else 1
    return at(rows, "loss", step, window)


def at(rows: list[dict[str, Any]], key: str, step: int, window: int) -> float | None:
    """Return a logged quantity at a step, averaged at each logged row over the last `window` steps.

    Between two logged rows the value is interpolated linearly. None where the step lies outside of the rows
    that have the quantity.
    """
    having = [row for row in rows if _is_number(row.get(key))]
    if not having or not having[0]["step"] <= step <= having[-1]["step"]:
        return None
    steps = np.array([row["step"] for row in having])
    values = np.array([float(row[key]) for row in having])

    def mean_up_to(place: int) -> float:
        within = (steps > steps[place] - window) & (steps <= steps[place])
        return float(values[within].mean())

    after = int(np.searchsorted(steps, step))
    if steps[after] == step:
        return mean_up_to(after)
    ends = [mean_up_to(after - 1), mean_up_to(after)]
    return float(np.interp(step, steps[after - 1 : after + 1], ends))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= _LARGEST  # false for NaN too
