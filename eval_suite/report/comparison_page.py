"""comparison.html: several evaluations side by side, over the training steps and over the training loss."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from markupsafe import Markup

from eval_suite.metrics import CLOUD, METHODS, REPRESENTATION, SCORES, headlines
from eval_suite.report import figures, names
from eval_suite.report.best_checkpoint import Best
from eval_suite.report.loss_correlation import ALPHA, Correlation
from eval_suite.report.over_seeds import Row, newest, paired, t_interval
from eval_suite.report.pages import template
from eval_suite.report.results_table import LOSS
from eval_suite.report.sentences import headline, shape_in_words
from eval_suite.report.standing import baselines, lead, standings
from eval_suite.report.summary.advice import what_next
from eval_suite.report.summary.of_comparison import of_comparison
from eval_suite.results import dig

Flat = Mapping[str, Any]

SUMMARISED = {name: method for name, method in METHODS.items() if method.summarised}
_MASKS = ("segmentation_probe/miou", f"{METHODS['segmentation_probe'].label}, {SCORES['miou'].label}")
QUANTITIES = {
    **{
        f"pretrained/{name}/{score.path}": f"{method.label}, {score.label}"
        for name, method in SUMMARISED.items()
        for score in SCORES.values()
        if score.over_steps or score.decides
    },
    f"pretrained/{_MASKS[0]}": _MASKS[1],
    **{f"pretrained/{metric.path}": metric.label for metric in REPRESENTATION if metric.over_steps},
    **{
        f"geometry/embedding/{metric.path}": metric.label
        for metric in CLOUD
        if metric.over_steps and metric not in REPRESENTATION
    },
    LOSS: "training loss",
}
"""The quantities drawn over the steps of a run: the column in the table of results, and the label."""


_OF_CLOUDS = (
    "dimension/two_nn",
    "graph/gap",
    "graph/torus_ratio",
    "normality/sigreg",
    "uniformity_over_null",
)
SIDE_BY_SIDE = [metric for metric in CLOUD if metric.path in _OF_CLOUDS]
"""The columns of the table of geometry, for the embedding and for a torus head's angles."""


class Difference(NamedTuple):
    """A difference of scores with its interval; the ends are None where there is no interval."""

    value: float
    low: float | None
    high: float | None


def render(
    rows: Sequence[Row],
    table: Sequence[Flat],
    best: Sequence[Best],
    correlations: Sequence[Correlation],
    notes: Sequence[str],
    out: Path,
) -> str:
    """Return the page as HTML; links to the reports are relative to `out`.

    `table` holds the row of `results_table` of each row.
    """
    named = list(dict.fromkeys(row.name for row in rows))
    colours = dict(zip(named, figures.class_colours(len(named)), strict=True))
    scores = _scores(rows)
    first = next(iter(scores), None)
    coloured = [
        (flat[LOSS], flat[first], colours[row.name])
        for row, flat in zip(rows, table, strict=True)
        if first and flat.get(LOSS) is not None and flat.get(first) is not None
    ]
    return template("comparison").render(
        rows=[
            (row, flat, [(each, _address(each.folder, out)) for each in row.members])
            for row, flat in zip(rows, table, strict=True)
        ],
        evaluations=sum(len(row.members) for row in rows),
        scores=scores,
        level={path: level(rows, path.removeprefix("pretrained/")) for path in scores},
        marked=[each.row for each in best],
        sentences=[each.sentence for each in best],
        summary=of_comparison(rows, best),
        headlines=[
            (row, f"{said} {what_next(row.results)}")
            for row in newest(rows)
            if (said := headline(row.results))
        ],
        leads=_leads(rows),
        clouds=_clouds(rows),
        cloud_metrics=[m for m in SIDE_BY_SIDE if any(of[m.path] is not None for *_, of in _clouds(rows))],
        differences=differences(rows),
        notes=notes,
        panels=_panels(named, rows, table, colours),
        memorising=_memorising(named, rows, table, colours),
        scatter=Markup(figures.pairs(coloured, "training loss", scores[first]))
        if first and len(coloured) > 2
        else None,
        correlations=correlations,
        alpha=ALPHA,
        colours=colours,
        phrase=names.phrase,
    )


def level(rows: Sequence[Row], path: str) -> list[Row]:
    """Return the rows that are best in the score at `path` of the pretrained encoder, or level with it.

    Two rows over seeds are compared by the interval of their difference, paired by seed; others are level
    with the best if they lie within its interval.
    """
    values = {i: dig(row.results, f"representations/pretrained/{path}") for i, row in enumerate(rows)}
    sign = 1 if SCORES[path.rpartition("/")[2]].higher_is_better else -1
    have = {i: sign * value for i, value in values.items() if value is not None}
    if not have:
        return []
    top = max(have, key=lambda i: have[i])
    low, high = dig(rows[top].results, f"representations/pretrained/{path}_interval") or (None, None)

    def is_level(i: int) -> bool:
        if have[i] == have[top]:
            return True
        if found := paired(rows[top], rows[i], path):
            ends = t_interval(found)
            return ends[0] is not None and ends[1] is not None and ends[0] <= 0 <= ends[1]
        return low is not None and high is not None and low <= values[i] <= high

    return [rows[i] for i in have if is_level(i)]


def differences(rows: Sequence[Row]) -> dict[str, Any]:
    """Return what the table of differences over seeds shows; {} without a row over seeds.

    For each such row: pretrained minus each baseline, and the row minus the best row of the newest step,
    both paired by seed, by the deciding score of the linear probe.
    """
    shown = [row for row in rows if row.seeds and standings(row.results)]
    if not shown:
        return {}
    first = standings(shown[0].results)[0]
    path = f"{first.method}/{first.score}"
    value = {
        id(row): v
        for row in rows
        if (v := dig(row.results, f"representations/pretrained/{path}")) is not None
    }
    columns = list(dict.fromkeys(name for row in shown for name in baselines(row.results)))
    candidates = [row for row in newest(shown) if id(row) in value]
    top = max(candidates, key=lambda row: value[id(row)]) if len(candidates) > 1 else None
    made = []
    for row in shown:
        cells: list[Difference | None] = []
        for name in columns:
            over = lead(row.results, path, name) if name in row.results["representations"] else None
            cells.append(over and Difference(over.value, *_finite(over.low, over.high)))
        if top is not None:
            of = [] if row is top else paired(row, top, path)
            cells.append(Difference(sum(of) / len(of), *t_interval(of)) if of else None)
        made.append((row, cells))
    by = f"{METHODS[first.method].label}, {SCORES[first.score].label}"
    heads = [*(f"over {names.phrase(name)}" for name in columns), *([f"over {top.name}"] if top else [])]
    return {"by": by, "columns": heads, "rows": made}


def _finite(*ends: float) -> tuple[float | None, ...]:
    return tuple(end if abs(end) < float("inf") else None for end in ends)


def _scores(rows: Sequence[Row]) -> dict[str, str]:
    """Return the columns of scores and their labels: the headline scores that some row has."""
    kinds = dict.fromkeys(row.results["kind"] for row in rows)
    wanted = [
        (f"{name}/{score}", f"{method.label}, {SCORES[score].label}")
        for name, method in SUMMARISED.items()
        for kind in kinds
        for score in headlines(kind)
    ]
    wanted.append(_MASKS)
    return {
        f"pretrained/{path}": label
        for path, label in wanted
        if any(dig(row.results, f"representations/pretrained/{path}") is not None for row in rows)
    }


def _panels(
    named: Sequence[str], rows: Sequence[Row], table: Sequence[Flat], colours: Mapping[str, str]
) -> list[tuple[str, Markup]]:
    """Draw each quantity over the steps, a line for each name; those with one step only are left out."""
    panels = []
    for column, title in QUANTITIES.items():
        if (drawn := _over_steps(column, named, rows, table, colours)) is not None:
            panels.append((title, Markup(figures.lines(drawn))))
    return panels


def _memorising(
    named: Sequence[str], rows: Sequence[Row], table: Sequence[Flat], colours: Mapping[str, str]
) -> list[tuple[str, Markup]]:
    """Draw each headline score of the linear probe over the steps, with its score on train dashed."""
    kinds = dict.fromkeys(row.results["kind"] for row in rows)
    panels = []
    for score in dict.fromkeys(score for kind in kinds for score in headlines(kind)):
        columns = (f"pretrained/probe/{score}", f"pretrained/probe/train/{score}")
        held, fitted = (_over_steps(column, named, rows, table, colours) for column in columns)
        if held is not None and fitted is not None:
            panels.append((SCORES[score].label, Markup(figures.lines(held, fitted))))
    return panels


def _leads(rows: Sequence[Row]) -> list[tuple[str, Markup]]:
    """Draw, for the newest step of each name, by how much it is ahead of each of its baselines."""
    panels = []
    for row in _newest_of_each(rows):
        if not (found := standings(row.results)):
            continue
        path = f"{found[0].method}/{found[0].score}"
        over = [lead(row.results, path, name) for name in baselines(row.results)]
        drawn = [(each.baseline, each.value, each.low, each.high) for each in over if each]
        by = f"{METHODS[found[0].method].label}, {SCORES[found[0].score].label}"
        panels.append((f"{row.name}, step {row.step:,}: {by}", Markup(figures.leads(drawn))))
    return panels


def _newest_of_each(rows: Sequence[Row]) -> list[Row]:
    """Return the row of the largest step of each name."""
    largest: dict[str, Row] = {}
    for row in rows:
        if row.name not in largest or row.step > largest[row.name].step:
            largest[row.name] = row
    return list(largest.values())


def _clouds(rows: Sequence[Row]) -> list[tuple[Row, str, str, dict[str, float | None]]]:
    """Return for each row and each of its clouds the row, the cloud, its shape in words, and its numbers."""
    made = []
    for row in rows:
        for cloud in ("embedding", "angles"):
            if (of := row.results["geometry"].get(cloud)) is None:
                continue
            shape = shape_in_words(of["verdict"]) if "verdict" in of else "–"
            made.append((row, cloud, shape, {m.path: dig(of, m.path) for m in SIDE_BY_SIDE}))
    return made


def _over_steps(
    column: str,
    named: Sequence[str],
    rows: Sequence[Row],
    table: Sequence[Flat],
    colours: Mapping[str, str],
) -> list[figures.Line] | None:
    """Return a line over the steps for each name that has values; None if all have one step only."""
    ends = f"{column}_low", f"{column}_high"
    found = {
        name: sorted(
            (
                (row.step, flat[column], *(flat.get(end) for end in ends))
                for row, flat in zip(rows, table, strict=True)
                if row.name == name and flat.get(column) is not None
            ),
            key=lambda point: point[0],
        )
        for name in named
    }
    if all(len(points) < 2 for points in found.values()):
        return None
    return [
        figures.Line([point[:2] for point in points], colours[name], [point[2:] for point in points])
        for name, points in found.items()
        if points
    ]


def _address(folder: Path, out: Path) -> str:
    """Return the relative address of a folder; a name such as javascript:… does not become a scheme."""
    return quote(os.fsencode(Path(os.path.relpath(folder, out)).as_posix()))
