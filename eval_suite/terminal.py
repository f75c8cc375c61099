"""What an evaluation prints: tables of scores, the results in sentences, and where the files are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from eval_suite.batch import Outcome
from eval_suite.metrics import METHODS, SCORES, headlines
from eval_suite.report import comparison_page, over_seeds, sentences
from eval_suite.report.cautions import cautions
from eval_suite.report.comparison import Comparison
from eval_suite.report.standing import leaders
from eval_suite.report.summary.advice import build_on, what_next
from eval_suite.report.summary.lines import about_usefulness
from isotorus.errors import one_line

SHOWN = 3
"""Largest number of evaluations that are printed as a table each; more are printed as a row each."""
SUMMARISED = {name: method for name, method in METHODS.items() if method.summarised}


def show(
    outcomes: Sequence[Outcome], published: Sequence[str], compared: Comparison | None = None, *, quiet: bool
) -> None:
    """Print the results of the evaluations, where their reports are, and the lines in `published`.

    One evaluation ends with up to seven lines: what was done, the gain, the report, MLflow, how to get its
    vectors, how to fine-tune it on labels, and what to do with other images. If `quiet`, because standard
    output is for JSON, print only the report and MLflow, to standard error.
    """
    in_rows = compared is not None and (len(outcomes) > SHOWN or any(row.seeds for row in compared.rows))
    if compared is not None and not quiet and in_rows:
        _print_whole(_rows(compared))
    for outcome in outcomes:
        results = outcome.results
        assert results is not None
        if not quiet and not in_rows:
            _print_whole(_table(results))
            for line in cautions(results):
                tell(f"note: {line}", quiet=quiet)
            said = [sentences.about_finetuning(results), sentences.about_masks(results)]
            said.append(sentences.about_geometry(results))
            if len(outcomes) == 1:
                said = [sentences.about_scores(results), *said, *_done_and_found(results)]
            else:
                said.append(about_usefulness(results))
            for line in filter(None, said):
                tell(line, quiet=quiet)
        page = outcome.task.out / "report.html"
        where = f"{page} (open it in a browser)" if page.exists() else f"{page.parent} (results.json)"
        if not in_rows:  # the comparison has links to the reports of its rows
            tell(f"Report: {where}", quiet=quiet)
    for line in filter(None, dict.fromkeys(published)):
        tell(line, quiet=quiet)
    if compared is not None and not quiet:
        for line in _about_comparison(compared):
            tell(line, quiet=quiet)
    found = [outcome.results for outcome in outcomes if outcome.results]
    if not quiet and len(found) == 1 and (run := found[0]["checkpoint"]["run"]):
        for what, command in build_on(found[0]).items():
            tell(f"{what}: {command}", quiet=quiet)
        tell(_own_images(Path(run)), quiet=quiet)


def _done_and_found(results: dict[str, Any]) -> list[str]:
    """Return a line that says what was done, and a line with the gain and what to do next."""
    checkpoint, data, reported = results["checkpoint"], results["data"], results["reported_on"]
    trained = f"trained for {checkpoint['step']} steps without labels" if checkpoint["run"] else "evaluated"
    scored = ""
    if results["kind"]:
        splits = [name for name in ("train", "val") if name in data] if reported == "folds" else [reported]
        labelled = sum(data[name]["labelled"] for name in splits)
        scored = f", scored on {sentences.SPLITS[reported]} ({labelled} labelled images)"
    found = sentences.headline(results) or sentences.about_scores(results)
    said = (sentences.about_collapse(results), found, what_next(results))
    return [f"Done: {checkpoint['name']}, {trained}{scored}.", f"Result: {' '.join(filter(None, said))}"]


def _own_images(run: Path) -> str:
    """Return the line that says how to use the recipe of a run for other images."""
    return (
        "Your own images: isotorus pack photos/ shards/ --val-fraction 0.1; "
        f"isotorus train --config {run / 'config.yaml'} name=mine data.path=shards/train"
    )


def tell(line: str, *, quiet: bool) -> None:
    """Print one line without markup and terminal escapes, to standard error if `quiet`."""
    Console(stderr=quiet).print(one_line(line), markup=False, highlight=False, soft_wrap=True)


def _print_whole(table: Table) -> None:
    """Print a table as wide as its contents are, because names must not be cut in a narrow terminal."""
    console = Console()
    needed = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    Console(width=max(needed, console.width)).print(table, crop=False)


def _table(results: dict[str, Any]) -> Table:
    """Return the scores and effective ranks of one evaluation, one row for each representation.

    Bold is what is best, or level with the best.
    """
    checkpoint, measured = results["checkpoint"], results["representations"]
    split = f" on {sentences.SPLITS[results['reported_on']]}" if results["reported_on"] else ""
    table = Table(
        title=Text(f"{checkpoint['name']}, step {checkpoint['step']},{split}".rstrip(",")),
        box=SIMPLE,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("", no_wrap=True)
    methods = {name: method for name, method in SUMMARISED.items() if name in measured["pretrained"]}
    scores = headlines(results["kind"])
    for name, method in methods.items():
        for number, score in enumerate(scores):
            title = _title(results, method.label, name) if number == 0 else ""
            short = SCORES[score].short or SCORES[score].label
            table.add_column(f"{title}\n{short} %", justify="right", no_wrap=True)
    shown = [(name, score) for name in methods for score in scores]
    if "segmentation_probe" in measured["pretrained"]:
        table.add_column(
            f"{_title(results, 'masks', 'segmentation_probe')}\nmIoU %", justify="right", no_wrap=True
        )
        shown.append(("segmentation_probe", "miou"))
    ranked = "rank" in measured["pretrained"]
    if ranked:
        table.add_column("eff.\nrank", justify="right")
    best = {(m, score): leaders(results, f"{m}/{score}") for m, score in shown}
    for name, of in measured.items():
        cells = [
            Text(_cell(of.get(m, {}), score), "bold" if name in best[m, score] else "") for m, score in shown
        ]
        rank = [_rank(of)] if ranked else []
        table.add_row(name, *cells, *rank)
    return table


def _title(results: dict[str, Any], label: str, method: str) -> str:
    """Return the title of a method's columns, with its split where that is another one than the table's."""
    own = results["representations"]["pretrained"][method].get("reported_on", results["reported_on"])
    return label if own == results["reported_on"] else f"{label}, {own}"


def _rows(compared: Comparison) -> Table:
    """Return one row for each row of the comparison, with intervals over seeds where it has several."""
    table = Table(box=SIMPLE, pad_edge=False, collapse_padding=True)
    kinds = dict.fromkeys(row.results["kind"] for row in compared.rows)
    scores = [
        (method, score, f"{described.short}, {SCORES[score].short or SCORES[score].label} %")
        for method, described in SUMMARISED.items()
        for score in dict.fromkeys(score for kind in kinds for score in headlines(kind))
        if described.of_vectors or _any_has(compared, method)
    ]
    if _any_has(compared, "segmentation_probe"):
        scores.append(("segmentation_probe", "miou", "masks, mIoU %"))
    for title in ("", "step", "n", *(title for _, _, title in scores), "eff. rank", "geometry"):
        table.add_column(title, justify="left" if title in ("", "geometry") else "right", no_wrap=True)
    level = {(m, s): comparison_page.level(compared.rows, f"{m}/{s}") for m, s, _ in scores}
    best = [each.row for each in compared.best]
    for row in compared.rows:
        of = row.results["representations"]["pretrained"]
        cells = [
            Text(_cell(of.get(m, {}), s, interval=bool(row.seeds)), "bold" if row in level[m, s] else "")
            for m, s, _ in scores
        ]
        verdict = row.results["geometry"].get("embedding", {}).get("verdict", {}).get("name", "–")
        verdict = "collapsed" if of.get("collapsed") else verdict
        step = f"{row.step} best" if row in best else str(row.step)
        table.add_row(Text(row.name), step, str(len(row.members)), *cells, _rank(of), Text(verdict))
    return table


def _any_has(compared: Comparison, method: str) -> bool:
    """Return whether any row has scores by this method."""
    return any(method in row.results["representations"]["pretrained"] for row in compared.rows)


def _about_comparison(compared: Comparison) -> list[str]:
    """Return the headline of each group of seeds, the best checkpoints, and what was kept apart."""
    said = [
        f"{row.name}, {len(row.seeds)} seeds, step {row.step}: {found} {what_next(row.results)}"
        for row in over_seeds.newest(compared.rows)
        if (found := sentences.headline(row.results))
    ]
    return [*said, *(each.sentence for each in compared.best), *(f"note: {n}" for n in compared.notes)]


def _rank(of: dict[str, Any]) -> str:
    value = of.get("rank", {}).get("effective_rank")
    return "–" if value is None else f"{value:.1f}"


def _cell(of: dict[str, Any], score: str, *, interval: bool = True) -> str:
    if of.get(score) is None:
        return "–"
    low, high = of.get(f"{score}_interval") or (None, None)
    bounds = "" if low is None or high is None or not interval else f" ({100 * low:.0f}–{100 * high:.0f})"
    return f"{100 * of[score]:.1f}{bounds}"
