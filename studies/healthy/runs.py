"""`python -m studies.healthy.runs FOLDER`: train the runs of docs/healthy-run.md, and print its table.

One is healthy; each of the others has one setting that spoils it. FOLDER is that of `studies.torus.cifar`,
and the rows are kept in rows.csv beside this file.
"""

import csv
import sys
from pathlib import Path

from isotorus import jsonl
from isotorus.errors import UserError, exit_code
from studies.running import folder_and_names, python

HERE = Path(__file__).resolve().parent
RECIPE = HERE.parent / "torus" / "lejepa_cpu.yaml"
RUNS: dict[str, list[str]] = {
    "healthy": [],
    "no-sigreg": ["objective.weight=0.0001"],
    "too-much-sigreg": ["objective.weight=0.9"],
    "high-rate": ["optimizer.lr=0.2"],
    "equal-views": [
        "views.global_scale=[1, 1]",
        "augment.jitter_probability=0",
        "augment.grey_probability=0",
        "augment.horizontal_flip=0",
    ],
}
"""The settings that each run changes."""
ENDS_EARLY = "high-rate"
"""The run that the guard ends before its last step."""
STEPS = (10, 50, 100, 300)
COLUMNS = (
    "loss",
    "prediction",
    "sigreg_over_null",
    "effective_rank",
    "std_median",
    "grad_norm",
    "probe_balanced_accuracy",
    "skipped_steps",
    "collapsed",
)
"""Quantities of metrics.jsonl that are kept."""


def main() -> int:
    """Train the runs that are named, write the rows of all that are in the folder, and print them."""
    folder, names = folder_and_names(RUNS)
    for name in names:
        given = [
            "--config",
            str(RECIPE),
            "runs=healthy",
            f"name={name}",
            "data.path=shards/train",
            "steps=300",
        ]
        if python(folder, ["-m", "pretrain", *given, *RUNS[name]]) and name != ENDS_EARLY:
            raise UserError(f"{name} did not end; the same command continues it")
    table = [["run", "step", *COLUMNS]]
    for name in RUNS:
        rows = {row["step"]: row for row in jsonl.read(folder / "healthy" / name / "metrics.jsonl", "step")}
        for step in (step for step in STEPS if step in rows):
            table.append([name, str(step), *(f"{rows[step][key]:.4g}" for key in COLUMNS)])
    with (HERE / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows(table)
    for row in table:
        print("| " + " | ".join(row) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
