"""What an evaluation tells the terminal and the run's MLflow run."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval_suite import tracking
from eval_suite.batch import Outcome
from eval_suite.report.reading import HEADLINES, METHODS, TITLES, geometry, reading
from isotorus.secrets import masked

SHOWN = 3
"""Most evaluations that get a table each; more get a row each."""


def publish(results: dict[str, Any], out: Path) -> str:
    """Send results and report to the MLflow run of the training, if there is one; says how to see it."""
    run = results["checkpoint"]["run"]
    record = tracking.store(Path(run)) if run else None
    step, files = results["checkpoint"]["step"], [out / "results.json", out / "report.html"]
    if record and tracking.send(record, step, tracking.scalars(results), files, f"eval/{step}"):
        return where(record)
    return ""


def where(record: dict[str, str]) -> str:
    """How to see the MLflow store of a run."""
    uri = masked(record["uri"])
    command = f"mlflow ui --backend-store-uri {shlex.quote(uri)}"
    return f"MLflow: {uri} ({'open it in a browser' if uri.startswith('http') else command})"


def show(done: Sequence[Outcome], published: Sequence[str], *, quiet: bool) -> None:
    """Tables, where the reports are, and what was published; without the tables if `quiet`, for JSON."""
    console = Console(stderr=quiet)
    if not quiet and len(done) > SHOWN:
        console.print(_rows(done))
    for outcome in done:
        results = outcome.results
        assert results is not None
        if not quiet and len(done) <= SHOWN:
            console.print(_table(results))
            console.print(f"{reading(results)} {geometry(results)}", markup=False, highlight=False)
        tell(f"report: {outcome.task.out / 'report.html'} (open it in a browser)", quiet=quiet)
    for line in filter(None, dict.fromkeys(published)):
        tell(line, quiet=quiet)


def tell(line: str, *, quiet: bool) -> None:
    Console(stderr=quiet).print(line, markup=False, highlight=False, soft_wrap=True)


def _table(results: dict[str, Any]) -> Table:
    which, measured = results["checkpoint"], results["representations"]
    where = f" on {results['reported_on']}" if results["reported_on"] else ""
    table = Table(
        title=Text(f"{which['name']}, step {which['step']},{where}".rstrip(",")),
        box=SIMPLE,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("", no_wrap=True)
    methods = {m: METHODS[m] for m in ("probe", "knn") if m in measured["pretrained"]}
    scores = HEADLINES.get(results["kind"], ())
    for method in methods.values():
        for number, score in enumerate(scores):
            title = method if number == 0 else ""
            table.add_column(f"{title}\n{_short(score)} %", justify="right", no_wrap=True)
    ranked = "rank" in measured["pretrained"]
    if ranked:
        table.add_column("eff.\nrank", justify="right")
    for name, found in measured.items():
        cells = [_cell(found.get(m, {}), score) for m in methods for score in scores]
        rank = [f"{found['rank']['effective_rank']:.1f}"] if ranked else []
        table.add_row(name, *cells, *rank)
    return table


def _rows(done: Sequence[Outcome]) -> Table:
    table = Table(box=SIMPLE, pad_edge=False, collapse_padding=True)
    for title in ("", "step", "probe, balanced %", "k-NN, balanced %", "eff. rank", "geometry"):
        table.add_column(title, justify="left" if title in ("", "geometry") else "right")
    for outcome in done:
        assert outcome.results is not None
        which, found = outcome.results["checkpoint"], outcome.results["representations"]["pretrained"]
        scores = [
            f"{100 * found[m]['balanced_accuracy']:.1f}" if m in found else "–" for m in ("probe", "knn")
        ]
        rank = f"{found['rank']['effective_rank']:.1f}" if "rank" in found else "–"
        verdict = outcome.results["geometry"].get("embedding", {}).get("verdict", {}).get("name", "–")
        table.add_row(which["name"], str(which["step"]), *scores, rank, verdict)
    return table


def _short(score: str) -> str:
    return {"balanced_accuracy": "balanced", "average_precision": "mAP"}.get(score, TITLES[score])


def _cell(found: dict[str, Any], score: str) -> str:
    if found.get(score) is None:
        return "–"
    low, high = found[f"{score}_interval"]
    return f"{100 * found[score]:.1f} ({100 * low:.0f}–{100 * high:.0f})"
