"""comparison.html: several evaluations side by side, over the training steps and over the training loss."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from scipy.stats import spearmanr

from eval_suite import results
from eval_suite.metrics import CLOUD, METHODS, REPRESENTATION, SCORES
from eval_suite.report import figures
from eval_suite.report.pages import template
from eval_suite.report.results_table import LOSS

Results = dict[str, Any]
Row = dict[str, Any]

COMPARED = {
    f"pretrained/{name}/{score.path}": f"{method.label}, {score.label}"
    for name, method in METHODS.items()
    for score in SCORES.values()
    if method.summarised and score.over_steps
}
"""Scores that the page compares: their columns in the table of results, and their labels."""
QUANTITIES = {
    **COMPARED,
    **{f"pretrained/{metric.path}": metric.label for metric in REPRESENTATION if metric.over_steps},
    **{f"geometry/embedding/{metric.path}": metric.label for metric in CLOUD if metric.over_steps},
    LOSS: "training loss",
}
"""What is drawn over the steps of a run: its column in the table of results, and its label."""


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of training loss and a score over a group of checkpoints."""

    group: str
    score: str
    rho: float
    checkpoints: int


def write(evaluated: Sequence[tuple[Results, Path]], rows: Sequence[Row], out: Path) -> None:
    """Write comparison.html to the folder `out`; raises UserError where the disk refuses.

    `evaluated` holds the results of each evaluation and the folder of its report, `rows` its row of
    `results_table`.
    """
    results.write(out / "comparison.html", render(evaluated, rows, out))


def correlations(rows: Sequence[Row]) -> list[Correlation]:
    """Correlate training loss and scores within each run, and over the newest checkpoints of all runs.

    Groups of fewer than four checkpoints are left out, and those in which loss or score is constant.
    """
    by_run: dict[str, list[Row]] = {}
    for each in rows:
        by_run.setdefault(each["name"], []).append(each)
    groups = {name: members for name, members in by_run.items() if len(members) > 1}
    if len(by_run) > 1:
        newest = [max(members, key=lambda each: each["step"]) for members in by_run.values()]
        groups["the newest of each run"] = newest
    correlated = []
    for name, members in groups.items():
        for score, label in COMPARED.items():
            points = _points(members, score)
            if len(points) >= 4 and all(len(set(column)) > 1 for column in zip(*points, strict=True)):
                rho = float(spearmanr(*zip(*points, strict=True)).statistic)
                correlated.append(Correlation(name, label, rho, len(points)))
    return correlated


def render(evaluated: Sequence[tuple[Results, Path]], rows: Sequence[Row], out: Path) -> str:
    """Return the page as HTML; links to the reports are relative to `out`."""
    names = list(dict.fromkeys(each["name"] for each in rows))
    colours = dict(zip(names, figures.class_colours(len(names)), strict=True))
    panels = []
    for column, title in QUANTITIES.items():
        lines = {
            name: sorted((r["step"], r[column]) for r in rows if r["name"] == name and _has(r, column))
            for name in names
        }
        if any(len(points) > 1 for points in lines.values()):
            drawn = [(points, colours[name]) for name, points in lines.items() if points]
            panels.append((title, Markup(figures.lines(drawn))))
    first, label = next(iter(COMPARED.items()))
    coloured = [(*point, colours[r["name"]]) for r in rows for point in _points([r], first)]
    return template("comparison").render(
        rows=[
            (each, of, Path(os.path.relpath(path, out)).as_posix())
            for each, (of, path) in zip(rows, evaluated, strict=True)
        ],
        scores=[column for column in COMPARED if any(column in each for each in rows)],
        titles=QUANTITIES,
        panels=panels,
        scatter=Markup(figures.pairs(coloured, "training loss", label)) if len(coloured) > 2 else None,
        correlations=correlations(rows),
        colours=colours,
    )


def _points(rows: Sequence[Row], score: str) -> list[tuple[float, float]]:
    """Return training loss and score of the rows that have both."""
    return [(each[LOSS], each[score]) for each in rows if _has(each, LOSS) and _has(each, score)]


def _has(row: Row, column: str) -> bool:
    return row.get(column) is not None
