"""What the row of a run holds: its training, scores, geometry and windings, without what takes much space."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eval_suite.features import cache
from eval_suite.report.training import log as training_log
from eval_suite.results import json_safe
from eval_suite.torus_head.certificate import uniformity
from isotorus.errors import UserError
from isotorus.recipe import read_recipe_file
from studies.running import python

SHARDS = {part: f"cifar/shards/{part}" for part in ("train", "val", "test")}
METHODS = ("knn", "minibatch_probe", "probe")
"""Ways to judge features; the last one takes long and is on test only."""
SAMPLES = 2_000
"""Samples of the training split that geometry is measured on; verdicts are calibrated with as many."""
LAST = 50
"""Steps at the end of training over which logged numbers are averaged."""
CURVE_EVERY = 100
"""Steps between the points of the curves that a row keeps."""
CURVE = ("loss", "prediction", "effective_rank", "probe_balanced_accuracy")
CHECKPOINTS_EVERY = 250
LARGEST = 40
"""Numbers of a spectrum that a row keeps."""
BULKY = ("evidence", "measured", "homology", "circular", "left_out", "intervals", "local")
"""Parts of a cloud's geometry that are most of its bytes, or that a row has elsewhere."""
HOMOLOGY = ("betti", "p_values", "bars", "threshold", "landmarks")
"""What a row keeps of persistent homology."""
OF_THE_MACHINE = ("seconds_", "slowest_", "median_", "images_per", "memory", "time", "epoch", "data_wait")
"""How the names of those logged numbers begin that say nothing about the objective."""
ERRORS = (1, 2)
"""Exit codes of a command that ends with an error of its own; others are signals."""


class Failed(Exception):
    """A run cannot be measured."""


def log_of(folder: Path, name: str) -> Path:
    """Return the file with everything that a run and its evaluations print."""
    (folder / "logs").mkdir(exist_ok=True)
    return folder / "logs" / f"{name}.log"


def last_line(log: Path) -> str:
    """Return the last line of a log; empty if it has none."""
    return next(iter(log.read_text(errors="replace").strip().splitlines()[::-1]), "")


def is_complete(run: Path) -> bool:
    """Say whether a run has a checkpoint of its last step."""
    steps = read_recipe_file(str(run / "config.yaml"))["steps"]
    return (run / "checkpoints" / f"step_{steps:08d}" / "COMPLETE").exists()


def training(run: Path) -> dict[str, Any]:
    """Return steps, images seen, the mean of each logged number over the last steps, and a few curves."""
    log = training_log.logged(run)
    last = log[-1]["step"]
    names = [name for name in log[-1] if name != "step" and not name.startswith(OF_THE_MACHINE)]
    means = {name: training_log.at(log, name, last, LAST) for name in names}
    at = [row for row in log if row["step"] % CURVE_EVERY == 0]
    curves = {name: [row.get(name) for row in at] for name in ("step", *CURVE)}
    seen = {"steps": last, "images_seen": log[-1]["samples"]}
    return json_safe(seen | {"training": means, "curves": curves})


def evaluation(folder: Path, name: str, test: bool, held: int, untrained: bool = False) -> dict[str, Any]:
    """Evaluate the newest checkpoint of a run: to choose by, or with all measures and scores on test.

    The first seed has its earlier checkpoints as well, and a torus with actions its windings. `untrained`
    measures the encoder as it was initialised beside it. Raises `Failed` with what an evaluation said last,
    and UserError if one was stopped.
    """
    stage = "test" if test else "val"
    out = folder / "evaluations" / f"{name}-{stage}"
    run, log = folder / "runs" / name, log_of(folder, name)

    def call(*arguments: str) -> None:
        command(folder, log, *arguments, held=held)

    call("eval_suite", f"runs/{name}", *shards(test), *options(out, test, untrained))
    results = json.loads((out / "results.json").read_text())
    row = numbers(results) | {"torch": results["inputs"]["features"]["torch"]}
    if test:
        row["uniformity"] = _uniformity(out, results)
        config = read_recipe_file(str(run / "config.yaml"))
        if config["views"]["actions"]:
            file = out / "angles.json"
            call("studies.torus.angles", f"runs/{name}", SHARDS["test"], str(file))
            row["angles"] = json.loads(file.read_text())
        if config["seed"] == 0:
            steps, every = out / "steps", ("--every", str(CHECKPOINTS_EVERY))
            call("eval_suite", f"runs/{name}", *every, *shards(False), *options(steps, False))
            row["checkpoints"] = [_checkpoint(file, run) for file in sorted(steps.rglob("results.json"))]
    for features in out.rglob("cache"):
        shutil.rmtree(features)
    return row


def command(folder: Path, log: Path, *arguments: str, held: int | None = None) -> None:
    """Run a module of this checkout; raises `Failed` where it ends with an error, UserError if stopped."""
    code = python(folder, ["-m", *arguments], log, held)
    if code in ERRORS:
        raise Failed(f"{arguments[0]}: {last_line(log)}")
    if code:
        raise UserError(f"{arguments[0]} was stopped (exit code {code}), see {log}; give the same command")


def shards(test: bool) -> list[str]:
    """Return the options that name the packed sets."""
    return [x for part in SHARDS if test or part != "test" for x in (f"--{part}", SHARDS[part])]


def options(out: Path, test: bool, untrained: bool = False) -> list[str]:
    """Return what an evaluation measures, and whether the untrained encoder stands beside it."""
    metrics = ["knn", "minibatch_probe", "rank", "shape", "graph", *(["probe", "homology"] if test else [])]
    return [
        *("--metrics", ",".join(metrics), "--samples", str(SAMPLES), "--folds", "0", "--out", str(out)),
        *("--baselines", "untrained" if untrained else "", "--initialisations", "1"),
    ]


def numbers(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scores and the geometry of an evaluation; test scores where they were measured."""
    found = {of: scores(x) for of, x in results["representations"].items()}
    pretrained = found["pretrained"]
    row: dict[str, Any] = {
        "scores": found,
        "geometry": {cloud: geometry(x) for cloud, x in results["geometry"].items()},
        "left_out": results["left_out"],
        "val": {method: max(of["val"].values()) for method, of in pretrained.items()},
    }
    if results["reported_on"] == "test":
        row["test"] = {method: of["balanced_accuracy"] for method, of in pretrained.items()}
    return row


def scores(representation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scores of a representation by method, with the best on val of each feature set."""
    kept: dict[str, Any] = {}
    for method in METHODS:
        if (found := representation.get(method)) is None:
            continue
        best: dict[str, float] = {}
        for tried in found["val"]:
            name = tried["feature_set"]
            best[name] = max(best.get(name, 0.0), tried["balanced_accuracy"])
        names = ("feature_set", "accuracy", "balanced_accuracy", "balanced_accuracy_interval", "auroc")
        kept[method] = {name: found.get(name) for name in names} | {"val": best}
    return kept


def geometry(cloud: Mapping[str, Any]) -> dict[str, Any]:
    """Return the geometry of a cloud without its evidence, with the first numbers of its spectra."""
    kept = _without_bulk(cloud)
    if "homology" in cloud:
        kept["homology"] = {key: x for key, x in cloud["homology"].items() if key in HOMOLOGY}
    if "graph" in cloud:
        kept["graph"]["intervals"] = cloud["graph"]["intervals"]
    if cloud.get("left_out"):
        kept["left_out"] = cloud["left_out"]
    return kept


def _without_bulk(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_bulk(x) for key, x in value.items() if key not in BULKY}
    return [_without_bulk(x) for x in value[:LARGEST]] if isinstance(value, list) else value


def _uniformity(out: Path, results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return U over its null of the angles of the test images, upright; None without a torus head."""
    about = results["inputs"]["data"]["test"], results["data"]["test"]["samples"]
    for file in (out / "cache").glob(f"*-{about[0]}.npz"):
        if (features := cache.load(file, about[1])) and "angles" in features:
            pairs = features["angles"].reshape(about[1], -1, 2).astype(np.float64)
            angles = np.arctan2(pairs[..., 1], pairs[..., 0])
            return json_safe(uniformity.summary("over_null", angles, 0))
    return None


def _checkpoint(file: Path, run: Path) -> dict[str, Any]:
    """Return the step of an evaluated checkpoint of a run, and its numbers as in a row on val."""
    results = json.loads(file.read_text())
    step = results["checkpoint"]["step"]
    pretrained = scores(results["representations"]["pretrained"])
    return {
        "step": step,
        "training": {"loss": training_log.at(training_log.logged(run), "loss", step, LAST)},
        "val": {method: max(of["val"].values()) for method, of in pretrained.items()},
        "geometry": {cloud: geometry(x) for cloud, x in results["geometry"].items()},
    }
