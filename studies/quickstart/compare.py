"""`python -m studies.quickstart.compare NAME…`: paired differences from the best baseline, by stored scores.

For each number of labels and feature set: the mean over seeds, less the best of the descriptors and of the
untrained encoders (each initialisation by itself, in every feature set). The 95 % interval is ±1.96 √(b² +
s²/k): b the bootstrap deviation of the difference when groups of near copies are drawn with replacement, s
the deviation over the k seeds.
"""

import csv
import sys

import numpy as np
from numpy.typing import NDArray

from studies.quickstart import probe
from studies.quickstart.cells import cells
from studies.quickstart.trials import OUT_OF_FOLD, rows


def stored(name: str, seed: str, features: str, labels: str) -> probe.OutOfFold:
    with np.load(OUT_OF_FOLD / f"{name}-s{seed}-{features}-{labels}.npz") as file:
        return probe.OutOfFold(file["scores"], file["folds"])


def main(names: list[str]) -> None:
    """Print a CSV."""
    known = cells()
    y, groups = known.labels[known.scored], known.groups[known.scored]
    weights = np.vstack([np.ones(len(y)), probe.bootstrap_weights(groups)])
    table = list(rows())

    def curve(row: dict[str, str], labels: str) -> NDArray[np.float64]:
        return stored(row["name"], row["seed"], row["features"], labels).auroc(y, weights)

    out = csv.writer(sys.stdout)
    out.writerow(["name", "features", "seeds", "labels", "auroc", "against", "theirs", "gain", "low", "high"])
    for name in names:
        mine = [row for row in table if row["name"] == name]
        against = [row for row in table if row["name"] == "baseline" or row["name"].startswith("untrained")]
        for features in dict.fromkeys(row["features"] for row in mine):
            seeds = [row for row in mine if row["features"] == features]
            for labels in probe.LABELS:
                best = max(against, key=lambda row: float(row[f"auroc_{labels}"]))
                scores = np.stack([curve(row, labels) for row in seeds])
                gains = scores.mean(axis=0) - curve(best, labels)
                over_seeds = scores[:, 0].var(ddof=1) / len(seeds) if len(seeds) > 1 else 0.0
                half = 1.96 * float(np.sqrt(gains[1:].var() + over_seeds))
                other = f"{best['name']}-s{best['seed']} {best['features']}"
                figures = [scores[:, 0].mean(), gains[0], gains[0] - half, gains[0] + half]
                mean, gain, low, high = (f"{x:.4f}" for x in figures)
                theirs = best[f"auroc_{labels}"]
                out.writerow([name, features, len(seeds), labels, mean, other, theirs, gain, low, high])


if __name__ == "__main__":
    main(sys.argv[1:])
