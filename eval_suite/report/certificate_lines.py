"""The lines of a certificate as a table: a column for the trained encoder and for each encoder beside it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Cell(NamedTuple):
    """A value with what stands below it in small letters."""

    value: str
    small: str = ""


class Table(NamedTuple):
    """The columns' titles and the rows: a title with a cell for each column."""

    columns: list[str]
    rows: list[tuple[str, list[Cell]]]


MISSING = Cell("–")
TITLES = {"untrained": "untrained", "pixels": "raw pixels"}


def lines(numbers: Mapping[str, Any]) -> Table:
    """Return the table of the content of certificate.json; cells that need angles are empty without them."""
    columns = {"this run": numbers} | {TITLES.get(name, name): of for name, of in numbers["beside"].items()}
    shape = "circle" if len(numbers["inputs"]["actions"]) == 1 else "torus"
    rows: dict[str, Sequence[Cell]] = {}

    def row(title: str, cell: Any) -> None:
        rows[title] = [cell(of) for of in columns.values()]

    row("windings right, % of images", lambda of: _share(of.get("windings"), "right_share"))
    row("|det W| = product of the orders, %", lambda of: _share(of.get("windings"), "det_share"))
    row("margin to half a turn, radians", _margin)
    row("verdict on the angles", _verdict)
    row("U over null, turned images", lambda of: _uniformity(of, "uniformity_over_null"))
    row("U over null, upright images", lambda of: _uniformity(of, "uniformity_over_null_upright"))
    for action in numbers["equivariance_error"]:
        row(f"error of {action.replace('_', ' ')}, median", lambda of, a=action: _error(of, a, "median"))
        row(f"error of {action.replace('_', ' ')}, 90 % below", lambda of, a=action: _error(of, a, "p90"))
    plural = {"circle": "circles", "torus": "tori"}[shape]
    row(f"orbits in the embedding that are {plural}", lambda of: _orbits(of.get("orbits")))
    if "orbits_pose" in numbers:
        row(f"orbits in the pose slice that are {plural}", lambda of: _orbits(of.get("orbits_pose")))
    return Table(list(columns), [(title, list(cells)) for title, cells in rows.items()])


def _share(found: Mapping[str, Any] | None, name: str) -> Cell:
    if found is None:
        return MISSING
    low, high = found[f"{name}_interval"]
    return Cell(f"{100 * found[name]:.1f}", f"{100 * low:.1f}–{100 * high:.1f}")


def _margin(of: Mapping[str, Any]) -> Cell:
    found = of.get("windings")
    return MISSING if found is None else Cell(f"{found['margin']:.2f}", f"least {found['margin_least']:.2f}")


def _verdict(of: Mapping[str, Any]) -> Cell:
    found = of.get("angles")
    if found is None:
        return MISSING
    rate = found["error_rate"]
    said = (
        ""
        if rate is None
        else f"found {rate['found']}/{rate['draws']}, wrong {rate['wrong']}/{rate['others']}"
    )
    return Cell(found["verdict"], said)


def _uniformity(of: Mapping[str, Any], name: str) -> Cell:
    if name not in of:
        return MISSING
    low, high = of[f"{name}_null"]
    return Cell(f"{of[name]:.3g}", f"uniform: {low:.2f}–{high:.2f}")


def _error(of: Mapping[str, Any], action: str, name: str) -> Cell:
    if "equivariance_error" not in of:
        return MISSING
    found = of["equivariance_error"][action]
    low, high = found[f"{name}_interval"]
    return Cell(f"{found[name]:.1f}°", f"{low:.1f}–{high:.1f}")


def _orbits(found: Mapping[str, Any] | None) -> Cell:
    if found is None:
        return MISSING
    return Cell(f"{found['tori']} of {found['images']}", f"by their loops alone {found['homology']}")
