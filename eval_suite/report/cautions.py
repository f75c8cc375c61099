"""Sentences about scores that may be too low because of a grid that ends too early, or of a fit that did not
converge.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from eval_suite.metrics import METHODS
from eval_suite.report import names
from isotorus.nearest_name import listed

_EQUAL = 1e-9  # scores on val that differ by less count as equal, because sums are rounded


class _Setting(NamedTuple):
    """A setting that is chosen from a grid."""

    title: str
    lowest: str
    """Adjective for the smallest value; `highest` is the adjective for the largest one."""
    highest: str
    option: str
    """Option of the command line that gives another grid; "" where there is none."""


_SETTINGS = {
    "l2": _Setting("L2 strength", "weakest", "strongest", "--l2"),
    "k": _Setting("number of neighbours", "smallest", "largest", "--k"),
    "learning_rate": _Setting("learning rate", "smallest", "largest", ""),
}


def cautions(results: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each method and end of its grid at which a setting was chosen, and for each
    method with a fit that did not converge. Each says what to do.

    A choice at the end of the grid counts only where the value beside it scored differently: where both are
    equal, values beyond the end are not expected to be better.
    """
    said = []
    for method, described in METHODS.items():
        at_edge: dict[tuple[str, float], list[str]] = {}
        unconverged: list[str] = []
        grid: Sequence[float] = ()
        for name, of in results["representations"].items():
            found = of.get(method)
            if not isinstance(found, Mapping):
                continue
            for key in _SETTINGS:
                if key in found and (edge := _edge(found, key)) is not None:
                    at_edge.setdefault((key, edge), []).append(names.phrase(name))
            if found.get("converged") is False:
                unconverged.append(names.phrase(name))
                grid = sorted({row["l2"] for row in _tried(found) if "l2" in row})
        said += [
            _about_edge(described.label, key, value, results, method, who)
            for (key, value), who in at_edge.items()
        ]
        if unconverged:
            said.append(_about_fits(described.label, unconverged, grid))
    return said


def _tried(found: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return every setting of a method with its scores, on inner folds or on val."""
    tried: Sequence[Mapping[str, Any]] = found.get("inner") or found.get("val") or ()
    return tried


def _edge(found: Mapping[str, Any], key: str) -> float | None:
    """Return the chosen value if it is the first or the last one of its grid, and the one beside it scores
    differently; else None.
    """
    rows = {row[key]: row for row in _tried(found) if row.get("feature_set") == found.get("feature_set")}
    grid, chosen = sorted(rows), found[key]
    if len(grid) < 2 or chosen not in (grid[0], grid[-1]):
        return None
    beside = rows[grid[1] if chosen == grid[0] else grid[-2]]
    scores = [
        (value, beside[score])
        for score, value in rows[chosen].items()
        if score not in (key, "feature_set") and None not in (value, beside.get(score))
    ]
    return float(chosen) if any(abs(a - b) > _EQUAL for a, b in scores) else None


def _about_edge(
    label: str, key: str, value: float, results: Mapping[str, Any], method: str, who: Sequence[str]
) -> str:
    """Say that a setting was chosen at an end of its grid, and how to try values beyond it."""
    setting = _SETTINGS[key]
    tried = [row for of in results["representations"].values() for row in _tried(of.get(method, {}))]
    lowest = value == min(row[key] for row in tried)
    end = setting.lowest if lowest else setting.highest
    said = f"The {label} of {listed(who)} took the {end} {setting.title} of its grid ({value:g}), "
    said += "so the score may be a little too low"
    if not setting.option:
        return f"{said}; it has no option, so rely on the linear probe."
    beyond = [value / 100, value / 10, value] if lowest else [value, 10 * value, 100 * value]
    if key == "k":
        beyond = sorted({max(1, round(value / 4)), max(1, round(value / 2)), round(value)})
        beyond = beyond if lowest else [value, 2 * value, 4 * value]
    values = ",".join(f"{each:g}" for each in beyond)
    return f"{said}; to try values beyond it, add {setting.option} {values}."


def _about_fits(label: str, who: Sequence[str], grid: Sequence[float]) -> str:
    """Say that a fit did not converge, and how to leave out the weak strengths, which take longest."""
    said = f"A fit of the {label} of {listed(who)} did not converge, so the score is that of its last step"
    if len(grid) < 3:
        return f"{said}; try stronger penalties, for example --l2 0.01,0.1,1,10."
    return f"{said}; leave out the weakest strengths: --l2 {','.join(f'{value:g}' for value in grid[2:])}."
