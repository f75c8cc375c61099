"""`python -m studies.geometry.tables`: write results.csv, checkpoints.csv and the tables of docs/study.md.

They hold the finished runs of results.jsonl beside this file. The tables are printed as well.
"""

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from eval_suite.results import dig
from isotorus.errors import exit_code
from studies.geometry import correlations, flat
from studies.geometry.further import SIZES
from studies.geometry.order import best, on_val
from studies.geometry.plan import IMAGES, OBJECTIVES, Run, grid
from studies.geometry.study import rows
from studies.torus.tables import over_seeds

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent.parent / "docs" / "study.md"
NOTHING = ["Not measured yet."]
Row = dict[str, Any]
METHODS = {"knn": "k-NN", "probe": "linear probe"}
GEOMETRY = {
    "effective rank": "rank/effective_rank",
    "RankMe": "rank/rankme",
    "α-ReQ": "rank/alpha_req",
    "TwoNN": "dimension/two_nn",
    "SIGReg / null": "normality/sigreg",
    "gap / torus's": "graph/torus_ratio",
    "gap / Gaussian's": "graph/gaussian_ratio",
    "λ₅₋₈ / λ₁₋₄": "graph/second_band",
}
"""Numbers of a cloud: their labels and their paths below it."""
WINDINGS = {
    "windings right, %": ("angles/windings/right_share", 100),
    "rotation, median error, °": ("angles/equivariance_error/rotation/median", 1),
    "rotation, 90 %, °": ("angles/equivariance_error/rotation/p90", 1),
    "hue, median error, °": ("angles/equivariance_error/hue/median", 1),
    "hue, 90 %, °": ("angles/equivariance_error/hue/p90", 1),
    "U / null, turned": ("angles/uniformity_over_null", 1),
}


def main() -> int:
    """Write the tables of numbers and print those of the page."""
    found = rows()
    flat.write(HERE / "results.csv", flat.by_run(found))
    flat.write(HERE / "checkpoints.csv", flat.checkpoints(found))
    tables = sections(found)
    for heading, lines in tables.items():
        print(f"\n### {heading}\n")
        print("\n".join(lines))
    PAGE.write_text(with_tables(PAGE.read_text(), tables))
    print(f"\n{PAGE} has these tables, results.csv the numbers; notebooks/analysis.ipynb draws them")
    return 0


def with_tables(page: str, tables: dict[str, list[str]]) -> str:
    """Return a page with the lines of each table between `<!-- table: HEADING -->` and `<!-- end -->`."""
    for heading, lines in tables.items():
        start, end = f"<!-- table: {heading} -->\n", "<!-- end -->"
        text = "\n".join(lines)
        pattern = re.escape(start) + ".*?" + re.escape(end)
        page = re.sub(pattern, lambda _, new=f"{start}\n{text}\n\n{end}": new, page, flags=re.DOTALL)
    return page


def sections(found: Sequence[Row]) -> dict[str, list[str]]:
    """Return the lines of each table by its heading."""
    finished = {(row["name"], row["stage"]): row for row in found}
    tested = [row for row in found if row["stage"] == "test" and "failed" not in row]
    runs = [row for row in flat.by_run(found) if "failed" not in row]
    return {
        "Tuning": _tuning(finished),
        "Scores on test": _scores(finished, tested),
        "Geometry of the embedding": _geometry(tested, "embedding"),
        "Geometry of what the objective shapes": _geometry(tested, "projector", "angles"),
        "Windings": _windings(tested),
        "What tells accuracy": correlations.lines(runs, flat.checkpoints(found)),
        "Fewer images": _fewer_images(tested),
        "Failed": [f"- {row['name']}, {row['stage']}: {row['failed']}" for row in found if "failed" in row]
        or ["No run failed."],
    }


def table(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """Return a Markdown table."""
    return [f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *lines)]


def _tuning(finished: dict[tuple[str, str], Row]) -> list[str]:
    """Return a line for each point of each grid; the chosen one is bold."""
    lines = []
    for objective in OBJECTIVES:
        chosen = best(finished, [objective])
        for run in grid(objective):
            at = (run.objective, run.learning_rate, run.weight) == chosen
            lines.append(_point(run, finished.get((run.name, "val")), at))
    columns = (
        "objective",
        "learning rate",
        "weight",
        "k-NN, val",
        "minibatch probe, val",
        "mean",
        "loss",
        "CPU s",
    )
    return table(columns, lines)


def _point(run: Run, row: Row | None, chosen: bool) -> list[str]:
    about = [run.objective, f"{run.learning_rate:g}", f"{run.weight:g}"]
    if row is None or "failed" in row:
        return [*about, "not measured yet" if row is None else "failed", "", "", "", ""]
    on = [100 * row["val"]["knn"], 100 * row["val"]["minibatch_probe"], 100 * on_val(row)]
    loss, used = row["training"]["loss"], row["cpu_seconds"]
    scores = [f"**{x:.1f}**" if chosen else f"{x:.1f}" for x in on]
    return [*about, *scores, f"{loss:.4g}", "" if used is None else f"{used:.0f}"]


def _scores(finished: dict[tuple[str, str], Row], tested: Sequence[Row]) -> list[str]:
    """Return scores over seeds, and the differences to LeJEPA by seed."""
    lejepa = {row["seed"]: row for row in tested if row["objective"] == "lejepa"}
    tested = [*tested, *filter(None, map(_untrained, lejepa.values()))]
    lines = []
    for name in dict.fromkeys([*OBJECTIVES, *(row["objective"] for row in tested)]):
        of = [row for row in tested if row["objective"] == name]
        point = best(finished, [name]) if name in OBJECTIVES else None
        at = f"{point.learning_rate:g}, {point.weight:g}" if point else ""
        if not of:
            lines.append([name, at or "not finished", "0", *[""] * 5])
            continue
        scores = [over_seeds([100 * row["test"][method] for row in of]) for method in METHODS]
        less = [
            over_seeds([
                100 * (row["test"][method] - lejepa[row["seed"]]["test"][method])
                for row in of
                if row["seed"] in lejepa
            ])
            for method in METHODS
        ]  # fmt: skip
        used = [row["cpu_seconds"] for row in flat.by_run(finished.values()) if row["objective"] == name]
        known = [x for x in used if x is not None]
        spent = f"{sum(known) / len(known):.0f}" if known else ""
        lines.append([name, at, str(len(of)), *scores, *(less if name != "lejepa" else ["", ""]), spent])
    labels = [f"{x}, %" for x in METHODS.values()]
    minus = [f"{x} less LeJEPA's, points" for x in METHODS.values()]
    return table(("objective", "learning rate, weight", "seeds", *labels, *minus, "CPU s a run"), lines)


def _untrained(row: Row) -> Row | None:
    """Return the row of the encoder before training, from that of a run beside which it was measured."""
    if (found := row.get("scores", {}).get("untrained")) is None:
        return None
    scores = {method: of["balanced_accuracy"] for method, of in found.items()}
    return {"objective": "untrained", "seed": row["seed"], "test": scores}


def _geometry(tested: Sequence[Row], *clouds: str) -> list[str]:
    """Return the geometry of the last of these clouds that a run has, mean and interval over seeds."""
    lines = []
    for name in dict.fromkeys(row["objective"] for row in tested):
        of = [row for row in tested if row["objective"] == name]
        cloud = [x for x in clouds if x in of[0]["geometry"]]
        if not cloud:
            continue
        each = [row["geometry"][cloud[-1]] for row in of]
        numbers = [_over(each, path) for path in GEOMETRY.values()]
        u = _over(of, "uniformity/over_null") if cloud[-1] == "angles" else ""
        betti = _distinct(_betti(x) for x in each)
        verdicts = _distinct(dig(x, "verdict/name") or "" for x in each)
        lines.append([name, cloud[-1], *numbers, u, betti, verdicts])
    if not lines:
        return NOTHING
    return table(("objective", "cloud", *GEOMETRY, "U / null", "Betti over Z/2 (least p)", "verdict"), lines)


def _betti(cloud: Row) -> str:
    """Return the Betti numbers over Z/2, with the smallest p-value of a loop and of a void."""
    if (homology := cloud.get("homology")) is None:
        return ""
    least = [f"{min(p):.2g}" for p in homology["p_values"]["2"][1:] if p]
    return f"{', '.join(map(str, homology['betti']['2']))} ({', '.join(least)})"


def _distinct(texts: Iterable[str]) -> str:
    """Return each text once, in the order of the seeds."""
    return "; ".join(dict.fromkeys(texts))


def _over(of: Sequence[Row], path: str) -> str:
    """Return mean and interval of a number; ratios of spectra are near 1 and have two decimals."""
    digits = 2 if path.startswith("graph") else 1
    return over_seeds([x for row in of if (x := dig(row, path)) is not None], digits)


def _windings(tested: Sequence[Row]) -> list[str]:
    """Return what the angles of the torus with actions do, over seeds."""
    of = [row for row in tested if "angles" in row]
    if not of:
        return NOTHING
    seeds = [f"seed {row['seed']}" for row in of]
    lines = []
    for label, (path, scale) in WINDINGS.items():
        values = [scale * dig(row, path) for row in of]
        lines.append([label, *(f"{x:.1f}" for x in values), over_seeds(values)])
    lines.append(["verdict on the angles", *(dig(row, "angles/angles/verdict") for row in of), ""])
    return table(("", *seeds, "mean, 95 % interval over seeds"), lines)


def _fewer_images(tested: Sequence[Row]) -> list[str]:
    """Return LeJEPA's scores by the number of images that it is trained on."""
    lines = []
    for n in (*SIZES, IMAGES):
        of = [row for row in tested if row["images"] == n and row["objective"].startswith("lejepa")]
        of = [row for row in of if row["objective"] != "lejepa_auto"]
        scores = [over_seeds([100 * row["test"][method] for row in of]) for method in METHODS]
        lines.append([f"{n:,}", str(len(of)), *scores])
    return table(("images", "seeds", *(f"{x}, %" for x in METHODS.values())), lines)


if __name__ == "__main__":
    sys.exit(exit_code(main))
