"""`python -m studies.quickstart.trials [trials.yaml]`: train and score what is not in trials.csv yet.

Each trial is a name, its seeds and what it changes in base.yaml. It is trained by the product's command on
one core and scored out of fold on the labelled cells of train and val, never on test. Rows are written as
they are finished: a rerun continues an interrupted run from its checkpoint and repeats no finished row.
A trial with `step` is scored at that checkpoint, and not trained further where it has it.
"""

import csv
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from isotorus.files import atomic
from studies.quickstart import probe
from studies.quickstart.cells import WORK, cells
from studies.quickstart.features import Vectors, baselines, checkpoint_sets

HERE = Path(__file__).parent
TABLE, BASE = HERE / "trials.csv", HERE / "base.yaml"
RUNS, LOGS, OUT_OF_FOLD = WORK / "runs", WORK / "logs", WORK / "out_of_fold"
SETS = ["stages@96"]
UNTRAINED_SEEDS = (0, 1, 2)
COLUMNS = ["name", "seed", "step", "features", "width", "overrides", "cpu_minutes"]
COLUMNS += [f"{kind}_{labels}" for labels in probe.LABELS for kind in ("auroc", "se")]


def main(listing: Path) -> None:
    """Baselines first, then each trial of the listing with each of its seeds, and its encoder untrained."""
    for folder in (RUNS, LOGS, OUT_OF_FOLD):
        folder.mkdir(parents=True, exist_ok=True)
    finished = {(row["name"], row["seed"]) for row in rows()}
    if ("baseline", "0") not in finished:
        add("baseline", 0, {}, baselines())
    for trial in yaml.safe_load(listing.read_text()):
        name, seeds, sets = trial["name"], trial.get("seeds", [0]), trial.get("sets", SETS)
        for seed in seeds:
            if (name, str(seed)) not in finished:
                found = trained(name, seed, trial.get("overrides", []), trial.get("step"))
                add(name, seed, found, checkpoint_sets(found["checkpoint"], sets))
        if "untrained" in trial:
            for seed in UNTRAINED_SEEDS:
                if (trial["untrained"], str(seed)) not in finished:
                    newest = checkpoints(name, seeds[0])[-1]
                    add(trial["untrained"], seed, {}, checkpoint_sets(newest, sets, seed))


def rows() -> Iterator[dict[str, str]]:
    """The finished rows of the table."""
    if TABLE.exists():
        with TABLE.open(newline="") as file:
            yield from csv.DictReader(file)


def checkpoints(name: str, seed: int) -> list[Path]:
    """The checkpoints of a run, the oldest first."""
    return sorted((RUNS / f"{name}-s{seed}/checkpoints").glob("step_*"))


def trained(name: str, seed: int, overrides: list[str], step: int | None) -> dict[str, Any]:
    """The checkpoint of `step`, by default of the last, with what its row says of it."""
    known = {int(folder.name[5:]): folder for folder in checkpoints(name, seed)}
    log = LOGS / f"{name}-s{seed}.log"
    if step not in known:
        train(name, seed, overrides, log)
        known = {int(folder.name[5:]): folder for folder in checkpoints(name, seed)}
    step = step or max(known)
    minutes = sum(map(float, re.findall(r"cpu seconds: ([\d.]+)", log.read_text()))) / 60
    return {
        "checkpoint": known[step],
        "step": step,
        "overrides": json.dumps(overrides),
        "cpu_minutes": f"{minutes * step / max(known):.1f}",
    }


def train(name: str, seed: int, overrides: list[str], log: Path) -> None:
    """Train to the end, or return at once where that is done."""
    settings = [f"name={name}-s{seed}", f"runs={RUNS}", f"seed={seed}", "checkpoint.keep_last=100"]
    command = [sys.executable, "-m", "studies.quickstart.train", "--config", str(BASE), *settings, *overrides]
    with log.open("a") as stream:
        subprocess.run(command, stderr=stream, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def add(name: str, seed: int, run: dict[str, Any], sets: dict[str, Vectors]) -> None:
    """Score feature sets and append their rows, all at once so that none is missing or repeated."""
    known = cells()
    y, groups = known.labels[known.scored], known.groups[known.scored]
    weights = probe.bootstrap_weights(groups)
    fresh: list[dict[str, Any]] = []
    for features, vectors in sets.items():
        row: dict[str, Any] = {
            "name": name,
            "seed": seed,
            "features": features,
            "width": vectors.shape[1],
        } | {key: run.get(key, "") for key in ("step", "overrides", "cpu_minutes")}
        for labels in probe.LABELS:
            found = scored(f"{name}-s{seed}-{features}-{labels}", vectors[known.scored], y, groups, labels)
            row[f"auroc_{labels}"] = f"{found.auroc(y)[0]:.4f}"
            row[f"se_{labels}"] = f"{found.auroc(y, weights).std():.4f}"
        print({key: x for key, x in row.items() if key != "overrides"}, flush=True)
        fresh.append(row)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows([*rows(), *fresh])
    with atomic(TABLE) as stream:
        stream.write(text.getvalue().encode())


def scored(
    key: str, vectors: Vectors, y: NDArray[np.int64], groups: NDArray[np.int64], labels: str
) -> probe.OutOfFold:
    """Return out-of-fold scores, from the file that an interrupted attempt has left if there is one."""
    file = OUT_OF_FOLD / f"{key}.npz"
    if not file.exists():
        found = probe.out_of_fold(vectors, y, groups, labels)
        with atomic(file) as stream:
            np.savez(stream, scores=found.scores, folds=found.folds)
    with np.load(file) as stored:
        return probe.OutOfFold(stored["scores"], stored["folds"])


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "trials.yaml")
