"""`python -m studies.geometry.study FOLDER [NAME …]`: train and measure the runs of the study.

FOLDER/cifar is what `studies.torus.cifar` writes. NAMEs are objectives of plan.py and families of further.py.
The grids are trained with seed 0; the point with the best mean of k-NN and linear probe on the validation
images is chosen, and seeds are trained there. Each measured run is a line of results.jsonl beside this file;
a run that has its line is not done again, on any machine. A run that was stopped is continued. The same
command may be given several times at once, to use more cores: no run is done twice.
"""

import sys
import time
from pathlib import Path
from typing import Any

from isotorus import jsonl
from isotorus.errors import USER_ERROR, UserError, exit_code
from studies.geometry import measured
from studies.geometry.fewer_images import pack
from studies.geometry.further import FURTHER
from studies.geometry.order import Task, missing
from studies.geometry.plan import IMAGES, OBJECTIVES
from studies.running import add_row, claim, cpu_seconds, folder_and_names, python

HERE = Path(__file__).resolve().parent
BASE, RESULTS = HERE / "base.yaml", HERE / "results.jsonl"
WAIT = 10.0
"""Seconds until this process looks again, while others do all that is left."""
DIVERGED = "updates in a row were refused"
"""Part of the last line that a run prints if its guard has ended it."""


def main() -> int:
    """Do what is missing."""
    folder, names = folder_and_names([*OBJECTIVES, *FURTHER])
    if not (folder / "cifar" / "shards" / "train").is_dir():
        raise UserError(f"{folder} has no cifar/shards; python -m studies.torus.cifar ARCHIVE {folder}/cifar")
    while left := missing(rows(), names):
        if not any(_do(folder, task, len(left)) for task in left):
            time.sleep(WAIT)
    print(f"{RESULTS} has all runs of {', '.join(names)}; python -m studies.geometry.tables prints them")
    return 0


def rows() -> list[dict[str, Any]]:
    """Return the measured runs."""
    return jsonl.read(RESULTS)


def _do(folder: Path, task: Task, left: int) -> bool:
    """Train and measure a run and add its row; return False if another process does it, or has done it."""
    with claim(folder / "locks" / task.run.name) as held:
        if held is None or task.key in {(row["name"], row["stage"]) for row in rows()}:
            return False
        print(f"{time.strftime('%H:%M:%S')} {task.run.name}, {task.stage}; {left} can be started", flush=True)
        add_row(RESULTS, task.run._asdict() | {"stage": task.stage} | _row(folder, task, held))
    return True


def _row(folder: Path, task: Task, held: int) -> dict[str, Any]:
    """Return what was measured of a run, or why it failed."""
    run = folder / "runs" / task.run.name
    row = _train(folder, task, held)
    if "failed" in row:
        return row
    before, test = cpu_seconds(), task.stage == "test"
    beside = test and task.run.objective == "lejepa"  # other objectives begin with the same encoder
    try:
        row |= measured.training(run) | measured.evaluation(folder, task.run.name, test, held, beside)
    except measured.Failed as error:
        row["failed"] = str(error)
    return row | {"evaluation_cpu_seconds": round(cpu_seconds() - before, 1)}


def _train(folder: Path, task: Task, held: int) -> dict[str, Any]:
    """Train a run to its end, or go on with it; return its CPU time, if it was trained in one go here."""
    name, before = task.run.name, cpu_seconds()
    stopped, log = (folder / "runs" / name).exists(), measured.log_of(folder, name)
    if task.run.images < IMAGES:
        pack(folder, task.run.images)
    given = ["--config", str(BASE), f"name={name}", *task.run.overrides]
    code = python(folder, ["-m", "pretrain", *given], log, held)
    if code == USER_ERROR and DIVERGED in (said := measured.last_line(log)):
        return {"failed": f"training: {said}"}
    if code or not measured.is_complete(folder / "runs" / name):
        raise UserError(f"{name} did not end (exit code {code}), see {log}; the same command continues it")
    return {"cpu_seconds": None if stopped else round(cpu_seconds() - before, 1)}


if __name__ == "__main__":
    sys.exit(exit_code(main))
