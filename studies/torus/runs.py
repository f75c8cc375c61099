"""`python -m studies.torus.runs FOLDER [NAME …]`: train, certify and probe the runs of docs/torus.md.

FOLDER is that of `studies.torus.cifar`, and FOLDER/cells has the packed solar cells of `make quickstart`.
Runs are trained in FOLDER/runs, one after the other, and continue where they were stopped. Each finished run
is a line of FOLDER/results.jsonl.
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from isotorus import jsonl
from isotorus.errors import UserError, exit_code
from studies.running import add_row, cpu_seconds, folder_and_names, python

HERE = Path(__file__).resolve().parent
TORUS = HERE.parent.parent / "configs" / "torus_cpu.yaml"
LEJEPA = HERE / "lejepa_cpu.yaml"
CELLS = HERE / "cells_torus.yaml"


class Run(NamedTuple):
    """What a run is trained with, and the folder of its train, val and test shards."""

    recipe: Path
    settings: list[str]
    shards: str = "shards"


LIGHT = "objective.content_weight=0.15"
"""The weight of content in an earlier recipe, with which three seeds and two controls were trained."""
EQUAL_TIME = 4_850
"""Steps that LeJEPA alone does in the CPU time of 2,500 steps of the torus recipe."""
RUNS = {
    **{f"torus-s{seed}": Run(TORUS, [f"seed={seed}"]) for seed in range(3)},
    **{f"light-s{seed}": Run(TORUS, [f"seed={seed}", LIGHT]) for seed in range(3)},
    **{f"lejepa-s{seed}": Run(LEJEPA, [f"seed={seed}"]) for seed in range(3)},
    "control-invariant": Run(TORUS, ["steps=1000", LIGHT, "objective.equivariant=false"]),
    "control-shuffled": Run(TORUS, ["steps=1000", LIGHT]),
    **{f"cells-s{seed}": Run(CELLS, [f"seed={seed}"], "cells") for seed in range(3)},
    "cells-order-1": Run(CELLS, ["objective.order=[1]"], "cells"),
    **{f"weight-{w}": Run(TORUS, ["steps=1000", f"objective.content_weight={w}"]) for w in (0.15, 0.5, 0.85)},
    "pose-64": Run(TORUS, ["steps=1000", "objective.pose_width=64"]),
    "control-no-actions": Run(TORUS, ["steps=1000", "views.actions=[]"]),
    **{f"heavy-s{seed}": Run(TORUS, [f"seed={seed}", "objective.content_weight=0.85"]) for seed in range(3)},
    "weight-1": Run(LEJEPA, ["steps=1000"]),
    **{f"long-s{seed}": Run(LEJEPA, [f"seed={seed}", f"steps={EQUAL_TIME}"]) for seed in range(3)},
}
"""The runs of docs/torus.md."""
IMAGES = {"shards": "500", "cells": "300"}
"""Images whose windings are counted."""


def train(folder: Path, name: str) -> float | None:
    """Train a run; return its seconds of CPU time, or None if it went on with a run that was stopped."""
    run, stopped = RUNS[name], (folder / "runs" / name).exists()
    module = "studies.torus.shuffled" if name == "control-shuffled" else "pretrain"
    given = ["--config", str(run.recipe), f"name={name}", f"data.path={run.shards}/train"]
    before = cpu_seconds()
    call(folder, ["-m", module, *given, *run.settings])
    return None if stopped else cpu_seconds() - before


def certify(folder: Path, name: str) -> None:
    """Write certificate.json of a torus run, if it is missing, beside LeJEPA alone with the same seed."""
    if any((folder / "runs" / name / "eval").glob("*/certificate.json")):
        return
    against = folder / "runs" / name.replace("torus", "lejepa")
    beside = ["--against", str(against)] if "torus" in name and against.exists() else []
    shards = ["--data", f"{RUNS[name].shards}/test", "--images", IMAGES[RUNS[name].shards]]
    short = "steps=1000" in RUNS[name].settings and not name.startswith("control")
    orbits = ["--orbits", "2"] if short else []  # runs of 1,000 steps only show a trend
    actions = ["--actions", "rotation", "hue"] if name == "control-no-actions" else []
    call(folder, ["-m", "eval_suite", "certificate", f"runs/{name}", *shards, *orbits, *actions, *beside])


def probe(folder: Path, name: str) -> None:
    """Write results.json of a run: k-NN and linear probe, settings chosen on val."""
    shards = [x for part in ("train", "val", "test") for x in (f"--{part}", f"{RUNS[name].shards}/{part}")]
    metrics = ["--metrics", "probe,knn", "--baselines", "", "--folds", "0"]
    call(folder, ["-m", "eval_suite", f"runs/{name}", *shards, *metrics])


BULKY = {"each", "clouds", "evidence"}
"""Parts of a certificate that are most of its bytes: what each verdict was decided by."""


def summary(certificate: Any) -> Any:
    """Return a certificate without the evidence of its verdicts."""
    if isinstance(certificate, list):
        return [summary(x) for x in certificate]
    if not isinstance(certificate, dict):
        return certificate
    return {key: summary(x) for key, x in certificate.items() if key not in BULKY}


def scores(results: dict[str, Any]) -> dict[str, Any]:
    """Return the test scores of k-NN and probe of each representation, and the best on val by features."""
    kept: dict[str, Any] = {}
    for name, measured in results["representations"].items():
        for method in ("knn", "probe"):
            of = {
                key: measured[method][key]
                for key in ("feature_set", "accuracy", "balanced_accuracy", "auroc")
            }
            of["val"] = {}
            for tried in measured[method]["val"]:
                best = of["val"].get(tried["feature_set"], 0.0)
                of["val"][tried["feature_set"]] = max(best, tried["balanced_accuracy"])
            kept.setdefault(name, {})[method] = of
    return kept


def call(folder: Path, command: list[str]) -> None:
    """Run a Python command in FOLDER; raise `UserError` if it fails."""
    if python(folder, command):
        raise UserError(f"this failed: {' '.join(command)}; mend it, then give the same command again")


def main() -> int:
    """Run what is not in FOLDER/results.jsonl yet."""
    folder, names = folder_and_names(RUNS)
    results = folder / "results.jsonl"
    for name in names:
        if name in {row["name"] for row in jsonl.read(results)}:
            continue
        row: dict[str, Any] = {
            "name": name,
            "settings": RUNS[name].settings,
            "cpu_seconds": train(folder, name),
        }
        if RUNS[name].recipe != LEJEPA:
            certify(folder, name)
        probe(folder, name)
        for file in (folder / "runs" / name / "eval").glob("*/certificate.json"):
            row["certificate"] = summary(json.loads(file.read_text()))
        for file in (folder / "runs" / name / "eval").glob("*/results.json"):
            row["scores"] = scores(json.loads(file.read_text()))
        add_row(results, row)
    print(f"{results} has {len(names)} runs; docs/torus.md has the tables")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
