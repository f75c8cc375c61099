"""Several evaluations compared: rows over seeds, the best checkpoints, and loss beside scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval_suite import results
from eval_suite.report import best_checkpoint, comparison_page, over_seeds, results_table
from eval_suite.report.best_checkpoint import Best
from eval_suite.report.loss_correlation import Correlation, correlations
from eval_suite.report.over_seeds import Evaluated, Row


@dataclass(frozen=True)
class Comparison:
    """What the terminal, the page and the tables say of several evaluations."""

    rows: list[Row]
    best: list[Best]
    correlations: list[Correlation]
    notes: list[str]
    """A line for each evaluation that was kept apart or could not be read."""


def compare(evaluated: Sequence[Evaluated]) -> Comparison:
    """Put runs that differ by seed alone into one row, and find the best checkpoint of each run."""
    rows, notes = over_seeds.rows(evaluated)
    found = correlations([each.results for each in evaluated])
    return Comparison(rows, best_checkpoint.best_of(rows), found, notes)


def write(comparison: Comparison, out: Path) -> None:
    """Write results.csv, results.parquet, correlations.csv and comparison.html to the folder `out`.

    Raises UserError where the disk refuses.
    """
    table = results_table.write(comparison.rows, comparison.best, comparison.correlations, out)
    page = comparison_page.render(
        comparison.rows, table, comparison.best, comparison.correlations, comparison.notes, out
    )
    results.write(out / "comparison.html", page)
