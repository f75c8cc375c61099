"""What an evaluation prints: tables of scores, the results in sentences, and where the files are."""

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval_suite.batch import Outcome
from eval_suite.metrics import METHODS, SCORES, headlines
from eval_suite.report.sentences import about_geometry, about_usefulness

SHOWN = 3
"""Largest number of evaluations that are printed as a table each; more are printed as a row each."""
SUMMARISED = {name: method for name, method in METHODS.items() if method.summarised}


def show(outcomes: Sequence[Outcome], published: Sequence[str], *, quiet: bool) -> None:
    """Print the results of the evaluations, where their reports are, and the lines in `published`.

    If `quiet`, when standard output is for JSON, print only the last two, to standard error.
    """
    console = Console(stderr=quiet)
    if not quiet and len(outcomes) > SHOWN:
        console.print(_rows(outcomes))
    for outcome in outcomes:
        results = outcome.results
        assert results is not None
        if not quiet and len(outcomes) <= SHOWN:
            console.print(_table(results))
            sentences = f"{about_usefulness(results)} {about_geometry(results)}"
            console.print(sentences, markup=False, highlight=False)
        page = outcome.task.out / "report.html"
        said = f"report: {page} (open it in a browser)" if page.exists() else f"results: {page.parent}"
        tell(said, quiet=quiet)
    for line in filter(None, dict.fromkeys(published)):
        tell(line, quiet=quiet)


def tell(line: str, *, quiet: bool) -> None:
    """Print one line without markup, to standard error if `quiet`."""
    Console(stderr=quiet).print(line, markup=False, highlight=False, soft_wrap=True)


def _table(results: dict[str, Any]) -> Table:
    """Return the scores and effective ranks of one evaluation, one row for each representation."""
    checkpoint, measured = results["checkpoint"], results["representations"]
    split = f" on {results['reported_on']}" if results["reported_on"] else ""
    table = Table(
        title=Text(f"{checkpoint['name']}, step {checkpoint['step']},{split}".rstrip(",")),
        box=SIMPLE,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("", no_wrap=True)
    methods = {name: method for name, method in SUMMARISED.items() if name in measured["pretrained"]}
    scores = headlines(results["kind"])
    for method in methods.values():
        for number, score in enumerate(scores):
            title = method.label if number == 0 else ""
            short = SCORES[score].short or SCORES[score].label
            table.add_column(f"{title}\n{short} %", justify="right", no_wrap=True)
    ranked = "rank" in measured["pretrained"]
    if ranked:
        table.add_column("eff.\nrank", justify="right")
    for name, of in measured.items():
        cells = [_cell(of.get(method, {}), score) for method in methods for score in scores]
        rank = [_rank(of)] if ranked else []
        table.add_row(name, *cells, *rank)
    return table


def _rows(outcomes: Sequence[Outcome]) -> Table:
    """Return one row for each evaluation."""
    table = Table(box=SIMPLE, pad_edge=False, collapse_padding=True)
    methods = [f"{method.short}, balanced %" for method in SUMMARISED.values()]
    for title in ("", "step", *methods, "eff. rank", "geometry"):
        table.add_column(title, justify="left" if title in ("", "geometry") else "right")
    for outcome in outcomes:
        assert outcome.results is not None
        checkpoint, of = outcome.results["checkpoint"], outcome.results["representations"]["pretrained"]
        balanced = [of.get(method, {}).get("balanced_accuracy") for method in SUMMARISED]
        scores = ["–" if score is None else f"{100 * score:.1f}" for score in balanced]
        rank = _rank(of)
        verdict = outcome.results["geometry"].get("embedding", {}).get("verdict", {}).get("name", "–")
        verdict = "collapsed" if of.get("collapsed") else verdict
        table.add_row(checkpoint["name"], str(checkpoint["step"]), *scores, rank, verdict)
    return table


def _rank(of: dict[str, Any]) -> str:
    value = of.get("rank", {}).get("effective_rank")
    return "–" if value is None else f"{value:.1f}"


def _cell(of: dict[str, Any], score: str) -> str:
    if of.get(score) is None:
        return "–"
    low, high = of[f"{score}_interval"]
    interval = "" if low is None else f" ({100 * low:.0f}–{100 * high:.0f})"
    return f"{100 * of[score]:.1f}{interval}"
