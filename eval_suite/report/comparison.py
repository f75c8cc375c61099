"""Several evaluations side by side: a row each in results.csv and results.parquet, and a page of them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from markupsafe import Markup
from scipy.stats import spearmanr

from eval_suite import results
from eval_suite.report import figures, training_log
from eval_suite.report.pages import template
from eval_suite.tracking import scalars
from isotorus.errors import from_os_error
from isotorus.files import atomic

Results = dict[str, Any]

QUANTITIES = {
    "pretrained/probe/balanced_accuracy": "linear probe, balanced accuracy",
    "pretrained/knn/balanced_accuracy": "k-NN, balanced accuracy",
    "pretrained/rank/effective_rank": "effective rank",
    "geometry/embedding/dimension/two_nn": "intrinsic dimension (TwoNN)",
    "geometry/embedding/graph/torus_ratio": "spectral gap over a flat torus's",
    "training/loss": "training loss",
}
"""What is drawn over the steps of a run, by its name in the table."""
SCORES = ("pretrained/probe/balanced_accuracy", "pretrained/knn/balanced_accuracy")
LOSS = "training/loss"
_WINDOW = 0.01
"""Share of the run that a loss is averaged over."""


@dataclass(frozen=True)
class Correlation:
    """Spearman's, over the checkpoints of one run or of all."""

    of: str
    score: str
    rho: float
    checkpoints: int


def write(evaluated: Sequence[tuple[Results, Path]], out: Path) -> None:
    """results.csv, results.parquet and comparison.html in `out`; UserError where the disk refuses."""
    rows = [row(found) for found, _ in evaluated]
    names = list(dict.fromkeys(name for each in rows for name in each))
    table = pa.Table.from_pydict({name: [each.get(name) for each in rows] for name in names})
    try:
        out.mkdir(parents=True, exist_ok=True)
        with atomic(out / "results.csv") as stream:
            pyarrow.csv.write_csv(table, stream)
        with atomic(out / "results.parquet") as stream:
            pyarrow.parquet.write_table(table, stream)
    except OSError as error:
        raise from_os_error(error, f"writing the comparison to {out}") from error
    results.write(out / "comparison.html", render(evaluated, rows, out))


def row(found: Results) -> dict[str, Any]:
    """An evaluation as one flat row: the checkpoint, all numbers measured, verdicts, the training loss."""
    checkpoint = found["checkpoint"]
    flat = {key: checkpoint[key] for key in ("name", "step", "encoder", "parameters", "folder")}
    flat |= {name.removeprefix("eval/"): value for name, value in scalars(found).items()}
    for cloud, measured in found["geometry"].items():
        if "verdict" in measured:
            flat[f"geometry/{cloud}/verdict"] = measured["verdict"]["name"]
    if checkpoint["run"]:
        logged = training_log.logged(Path(checkpoint["run"]))
        window = max(1, round(_WINDOW * logged[-1]["step"])) if logged else 1
        if (loss := training_log.at(logged, "loss", checkpoint["step"], window)) is not None:
            flat[LOSS] = loss
    return flat


def correlations(rows: Sequence[dict[str, Any]]) -> list[Correlation]:
    """Of training loss and score within each run of four checkpoints or more, and over all runs' newest."""
    by_run: dict[str, list[dict[str, Any]]] = {}
    for each in rows:
        by_run.setdefault(each["name"], []).append(each)
    groups = {name: members for name, members in by_run.items() if len(members) > 1}
    if len(by_run) > 1:
        newest = [max(members, key=lambda each: each["step"]) for members in by_run.values()]
        groups["the newest of each run"] = newest
    found = []
    for name, members in groups.items():
        for score in SCORES:
            pairs = [
                (m[LOSS], m[score]) for m in members if m.get(LOSS) is not None and m.get(score) is not None
            ]
            if len(pairs) >= 4 and all(len(set(column)) > 1 for column in zip(*pairs, strict=True)):
                rho = float(spearmanr(*zip(*pairs, strict=True)).statistic)
                found.append(Correlation(name, QUANTITIES[score], rho, len(pairs)))
    return found


def render(evaluated: Sequence[tuple[Results, Path]], rows: Sequence[dict[str, Any]], out: Path) -> str:
    """The page: a table of all, what changes over steps, and how loss and scores go together."""
    names = list(dict.fromkeys(each["name"] for each in rows))
    colours = dict(zip(names, figures.class_colours(len(names)), strict=True))
    panels = []
    for key, title in QUANTITIES.items():
        lines = {
            name: sorted((r["step"], r[key]) for r in rows if r["name"] == name and r.get(key) is not None)
            for name in names
        }
        if any(len(points) > 1 for points in lines.values()):
            drawn = [(points, colours[name]) for name, points in lines.items() if points]
            panels.append((title, Markup(figures.lines(drawn))))
    scatter = [
        (r[LOSS], r[SCORES[0]], colours[r["name"]])
        for r in rows
        if r.get(LOSS) is not None and r.get(SCORES[0]) is not None
    ]
    return template("comparison").render(
        rows=[
            (each, found, Path(os.path.relpath(path, out)).as_posix())
            for each, (found, path) in zip(rows, evaluated, strict=True)
        ],
        scores=[key for key in SCORES if any(key in each for each in rows)],
        titles=QUANTITIES,
        panels=panels,
        scatter=Markup(figures.pairs(scatter, "training loss", "linear probe, balanced accuracy"))
        if len(scatter) > 2
        else None,
        correlations=correlations(rows),
        colours=colours,
    )
