"""`python -m studies.quickstart.compare NAME FEATURES`: paired differences from each baseline, as a CSV.

For each number of labels and kind of baseline: the mean over seeds of trial NAME, less the best row of that
kind. `untrained` are all initialisations of the trial's encoder in all of their feature sets; `together` is
HOG with histograms in one vector; `handmade` are the descriptors of `isotorus eval`, which are these and each
of the two alone. The 95 % interval is ±1.96 √(b² + s²/k): b the bootstrap deviation of the difference when
groups of near copies are drawn with replacement, s the deviation over the k seeds.
"""

import csv
import sys

import numpy as np
import yaml
from numpy.typing import NDArray

from studies.quickstart import probe
from studies.quickstart.cells import cells
from studies.quickstart.trials import HERE, OUT_OF_FOLD, rows

Row = dict[str, str]
LISTING = HERE / "trials.yaml"


KINDS = {
    "untrained": [],
    "pixels": ["pixels32"],
    "together": ["handmade-all"],
    "handmade": ["handmade-all", "handmade-hog", "handmade-histograms"],
    "texture": ["texture"],
}
"""Kinds of baselines, with the feature sets of those that need no encoder."""


def of_kind(kind: str, table: list[Row], trial: str) -> list[Row]:
    """The rows of a kind of baseline for a trial."""
    if kind == "untrained":
        listed = {each["name"]: each.get("untrained") for each in yaml.safe_load(LISTING.read_text())}
        return [row for row in table if row["name"] == (listed[trial] or "untrained")]
    return [row for row in table if row["name"] == "baseline" and row["features"] in KINDS[kind]]


def stored(row: Row, labels: str) -> probe.OutOfFold:
    with np.load(OUT_OF_FOLD / f"{row['name']}-s{row['seed']}-{row['features']}-{labels}.npz") as file:
        return probe.OutOfFold(file["scores"], file["folds"])


def main(name: str, features: str) -> None:
    known = cells()
    y, groups = known.labels[known.scored], known.groups[known.scored]
    weights = np.vstack([np.ones(len(y)), probe.bootstrap_weights(groups)])

    def curve(row: Row, labels: str) -> NDArray[np.float64]:
        """AUROC of all cells, then of each draw of groups."""
        return stored(row, labels).auroc(y, weights)

    table = list(rows())
    seeds = [row for row in table if row["name"] == name and row["features"] == features]
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(
        ["labels", "seeds", "auroc", "half", "kind", "row", "theirs", "their_half", "gain", "low", "high"]
    )
    for labels in probe.LABELS:
        scores = np.stack([curve(row, labels) for row in seeds])
        mean = scores.mean(axis=0)
        over_seeds = scores[:, 0].var(ddof=1) / len(seeds) if len(seeds) > 1 else 0.0

        def half(draws: NDArray[np.float64], variance: float = over_seeds) -> float:
            return 1.96 * float(np.sqrt(draws.var() + variance))

        for against in KINDS:
            rivals = of_kind(against, table, name)
            best = max(rivals, key=lambda row: float(row[f"auroc_{labels}"]))
            theirs = curve(best, labels)
            gain = mean - theirs
            figures = [mean[0], half(mean[1:]), theirs[0], half(theirs[1:], 0.0)]
            figures += [gain[0], gain[0] - half(gain[1:]), gain[0] + half(gain[1:])]
            a, b, c, d, *rest = (f"{x:.4f}" for x in figures)
            rival = f"{best['name']}-s{best['seed']} {best['features']}"
            out.writerow([labels, len(seeds), a, b, against, rival, c, d, *rest])


if __name__ == "__main__":
    main(*sys.argv[1:])
