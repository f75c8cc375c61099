"""`python -m studies.quickstart.look NAME`: one look at the final test with a trial, appended to test.csv.

The first look was at `calm`, when it was the quickstart's recipe, the second at `tiered`; nothing was chosen
by either.
Probes are fitted on all labelled cells of train and val, and score those of test. Gains are those of the mean
of three seeds; their 95 % intervals are percentiles over draws of test's groups with replacement.
"""

import csv
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from studies.quickstart import probe
from studies.quickstart.cells import cells
from studies.quickstart.features import Vectors, baselines, checkpoint_sets
from studies.quickstart.trials import UNTRAINED_SEEDS, checkpoints

FEATURES = "stages@96"
SEEDS = (0, 1, 2)


def main(trial: str) -> None:
    known = cells()
    fit, test = known.scored, known.test
    y, groups = known.labels, known.groups
    weights = np.vstack([np.ones(len(test)), probe.bootstrap_weights(groups[test])])

    def curve(x: Vectors) -> NDArray[np.float64]:
        """AUROC of the test, then of each draw of its groups."""
        scores = probe.fit_predict(x[fit], y[fit], groups[fit], x[test])
        return probe.weighted_auroc(scores, y[test], weights)

    last = {seed: checkpoints(trial, seed)[-1] for seed in SEEDS}
    pretrained = np.mean([curve(checkpoint_sets(last[s], [FEATURES])[FEATURES]) for s in SEEDS], axis=0)
    others = {f"untrained-s{s}": checkpoint_sets(last[0], [FEATURES], s)[FEATURES] for s in UNTRAINED_SEEDS}
    with Path(__file__).with_name("test.csv").open("a", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow([trial, "pretrained, mean of 3 seeds", f"{pretrained[0]:.4f}", "", "", ""])
        for name, x in (others | baselines()).items():
            theirs = curve(x)
            gain = pretrained - theirs
            low, high = np.nanpercentile(gain[1:], [2.5, 97.5])
            out.writerow([trial, name, *(f"{v:.4f}" for v in (theirs[0], gain[0], low, high))])


if __name__ == "__main__":
    main(sys.argv[1])
