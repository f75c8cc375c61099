"""`python -m studies.geometry.study FOLDER [OBJECTIVE …]`: train and measure the runs of the study.

FOLDER/cifar is what `studies.torus.cifar` writes. An objective's grid is trained with seed 0, the point with
the best mean of k-NN and linear probe on the validation images is chosen, and more seeds are trained there.
Each run is a line of results.jsonl beside this file; runs that are there are left out, on any machine.
"""

import json
import sys
from pathlib import Path
from typing import Any

from isotorus.errors import UserError, exit_code
from studies.geometry.plan import OBJECTIVES, Run, grid, run
from studies.running import cpu_seconds, folder_and_names, python

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.jsonl"
SHARDS = {part: f"cifar/shards/{part}" for part in ("train", "val", "test")}


def main() -> int:
    """Train what is missing."""
    folder, names = folder_and_names(OBJECTIVES)
    for name in names:
        tuning = [_row(folder, x) for x in grid(name)]
        best = max(tuning, key=_on_val)
        if "failed" in best:
            raise UserError(f"no run of the grid of {name} could be measured; see {RESULTS}")
        for seed in range(OBJECTIVES[name].seeds):
            _row(folder, run(name, best["learning_rate"], best["weight"], seed), test=True)
    print(f"{RESULTS} has the runs of {', '.join(names)}; python -m studies.geometry.tables prints them")
    return 0


def rows() -> list[dict[str, Any]]:
    """Return the runs that are there."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def _on_val(row: dict[str, Any]) -> float:
    """Return the score by which a point of the grid is chosen; a run that failed is below all others."""
    return -1.0 if "failed" in row else (row["val"]["knn"] + row["val"]["probe"]) / 2


def _row(folder: Path, planned: Run, test: bool = False) -> dict[str, Any]:
    """Return the row of a run; train and measure it first where the row is missing."""
    stage = "test" if test else "val"
    for row in rows():
        if row["name"] == planned.name and row["stage"] == stage:
            return row
    row = planned._asdict() | {"stage": stage}
    before = cpu_seconds()
    given = ["--config", str(HERE / "base.yaml"), f"name={planned.name}", *planned.overrides]
    if python(folder, ["-m", "pretrain", *given]):
        row["failed"] = "training"
    else:
        row["cpu_seconds"] = cpu_seconds() - before
        row |= _measured(folder, planned.name, test)
    with RESULTS.open("a") as stream:
        stream.write(json.dumps(row) + "\n")
    return row


def _measured(folder: Path, name: str, test: bool) -> dict[str, Any]:
    """Evaluate the newest checkpoint: scores on val to choose by, or all measures with test scores."""
    out = folder / "evaluations" / f"{name}-{'test' if test else 'val'}"
    parts = ["train", "val", "test"] if test else ["train", "val"]
    options = [x for part in parts for x in (f"--{part}", SHARDS[part])]
    options += ["--folds", "0", "--initialisations", "1", "--out", str(out), "--cache", str(folder / "cache")]
    options += [] if test else ["--metrics", "probe,knn", "--baselines", ""]
    if python(folder, ["-m", "eval_suite", f"runs/{name}", *options]):
        return {"failed": "evaluation"}
    results = json.loads((out / "results.json").read_text())
    trained = results["representations"]["pretrained"]
    scores = {method: trained[method]["balanced_accuracy"] for method in ("knn", "probe")}
    return {"test" if test else "val": scores} | ({"geometry": results["geometry"]} if test else {})


if __name__ == "__main__":
    sys.exit(exit_code(main))
