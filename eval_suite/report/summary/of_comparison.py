"""The top of a comparison: which row is best, against what, how sure that is, and what to do next."""

from collections.abc import Sequence

from eval_suite.metrics import METHODS, SCORES
from eval_suite.report.best_checkpoint import Best
from eval_suite.report.over_seeds import Row
from eval_suite.report.sentences import about_collapse, verdict
from eval_suite.report.standing import standings
from eval_suite.report.summary.advice import advice
from eval_suite.report.summary.lines import Line, geometry_line, sentence
from eval_suite.results import dig


def of_comparison(rows: Sequence[Row], best: Sequence[Best]) -> list[Line]:
    """Return at most five lines about the row that scores best; [] without rows."""
    if not rows:
        return []
    lines, top = _best_row(rows)
    if found := standings(top.results):
        lines.append(Line("against", verdict(found[0], top.results)))
    noisy = [each for each in best if each.beyond_noise]
    if noisy:
        lines.append(Line("checkpoints", noisy[0].sentence))
    elif collapsed := [row.name for row in rows if about_collapse(row.results)]:
        lines.append(Line("health", f"Collapsed: {', '.join(collapsed)}."))
    lines += geometry_line(top.results)
    todo = advice(top.results)
    return [*lines, Line("try next", sentence(todo.text), todo.command)]


def _best_row(rows: Sequence[Row]) -> tuple[list[Line], Row]:
    """Return the line about the row with the best score, and that row; without scores the last row."""
    scored = [(row, found[0]) for row in rows if (found := standings(row.results))]
    if not scored:
        return [Line("best", "None: no row was scored together with a baseline.")], rows[-1]
    method, score = scored[0][1].method, scored[0][1].score
    path = f"representations/pretrained/{method}/{score}"
    sign = 1 if SCORES[score].higher_is_better else -1
    values = {row: dig(row.results, path) for row, _ in scored}
    having: dict[Row, float] = {row: value for row, value in values.items() if value is not None}
    top = max(having, key=lambda row: sign * having[row])
    interval = dig(top.results, f"{path}_interval")
    by = f"{METHODS[method].label}, {SCORES[score].label} {100 * having[top]:.1f}\u00a0%"
    if interval is None:
        return [Line("best", f"{top.name}, step {top.step:,} ({by}).")], top
    low, high = interval
    level = [row for row in having if low <= having[row] <= high]
    bounds = f"95\u00a0% interval {100 * low:.1f} to {100 * high:.1f}"
    others = f"{len(level) - 1} of the other {len(rows) - 1} rows lie within it."
    return [Line("best", f"{top.name}, step {top.step:,} ({by}, {bounds}). {others}")], top
