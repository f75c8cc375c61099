"""Does the loss, or a measure of geometry, tell accuracy? Rank correlations within an objective."""

from collections.abc import Sequence
from typing import Any

from scipy.stats import spearmanr

from eval_suite.report.loss_correlation import FEWEST, interval
from eval_suite.results import dig

Row = dict[str, Any]
MEASURES = {
    "loss": "training/loss",
    "effective rank": "geometry/embedding/rank/effective_rank",
    "RankMe": "geometry/embedding/rank/rankme",
    "α-ReQ": "geometry/embedding/rank/alpha_req",
    "TwoNN": "geometry/embedding/dimension/two_nn",
    "SIGReg / null": "geometry/embedding/normality/sigreg",
    "spectral gap λ₁": "geometry/embedding/graph/gap",
    "gap / torus's": "geometry/embedding/graph/torus_ratio",
}
"""Measures of a run by their labels: paths in its row."""
SCORE = "val/knn"


def spearman(rows: Sequence[Row], measure: str) -> tuple[float, int] | None:
    """Return the rank correlation of a measure with k-NN on val, and the number of rows that have both.

    None for fewer than four rows, and where one of the two is constant.
    """
    pairs = [(dig(row, measure), dig(row, SCORE)) for row in rows]
    known = [(x, y) for x, y in pairs if x is not None and y is not None]
    if len(known) < FEWEST or any(len(set(column)) < 2 for column in zip(*known, strict=True)):
        return None
    return float(spearmanr(*zip(*known, strict=True)).statistic), len(known)


def lines(runs: Sequence[Row], checkpoints: Sequence[Row]) -> list[str]:
    """Return a Markdown table: each measure within each objective, over runs and over checkpoints.

    Runs are the points of the grid and the seeds. Runs of other objectives are never put together, because
    their losses have other units.
    """
    groups = [("runs", runs), ("checkpoints", checkpoints)]
    found = [
        (objective, kind, [row for row in rows if row["objective"] == objective])
        for kind, rows in groups
        for objective in dict.fromkeys(row["objective"] for row in rows)
    ]
    body = []
    for objective, kind, rows in found:
        cells = [_cell(spearman(rows, path)) for path in MEASURES.values()]
        if any(cells):
            body.append(f"| {objective}, {kind} | {len(rows)} | {' | '.join(cells)} |")
    if not body:
        return ["Not measured yet."]
    return [f"| | n | {' | '.join(MEASURES)} |", "|---" * (len(MEASURES) + 2) + "|", *body]


def _cell(found: tuple[float, int] | None) -> str:
    if found is None:
        return ""
    low, high = interval(*found)
    return f"{found[0]:.2f} ({low:.2f} to {high:.2f})"
