"""`python -m studies.quickstart.look`: the one look at the final test, after all choices, into test.csv.

Probes are fitted on all labelled cells of train and val, and score those of test. Gains are those of the mean
of three seeds; their 95 % intervals are percentiles over draws of test's groups with replacement.
"""

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from studies.quickstart import probe
from studies.quickstart.cells import cells
from studies.quickstart.features import Vectors, baselines, checkpoint_sets
from studies.quickstart.trials import UNTRAINED_SEEDS, checkpoints

NAME, FEATURES = "calm", "stages@96"
SEEDS = (0, 1, 2)


def main() -> None:
    known = cells()
    fit, test = known.scored, known.test
    y, groups = known.labels, known.groups
    weights = np.vstack([np.ones(len(test)), probe.bootstrap_weights(groups[test])])

    def curve(x: Vectors) -> NDArray[np.float64]:
        """AUROC of the test, then of each draw of its groups."""
        scores = probe.fit_predict(x[fit], y[fit], groups[fit], x[test])
        return probe.weighted_auroc(scores, y[test], weights)

    last = {seed: checkpoints(NAME, seed)[-1] for seed in SEEDS}
    pretrained = np.mean([curve(checkpoint_sets(last[s], [FEATURES])[FEATURES]) for s in SEEDS], axis=0)
    others = {f"untrained-s{s}": checkpoint_sets(last[0], [FEATURES], s)[FEATURES] for s in UNTRAINED_SEEDS}
    with Path(__file__).with_name("test.csv").open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["representation", "auroc", "gain", "low", "high"])
        out.writerow(["pretrained, mean of 3 seeds", f"{pretrained[0]:.4f}", "", "", ""])
        for name, x in (others | baselines()).items():
            theirs = curve(x)
            gain = pretrained - theirs
            low, high = np.nanpercentile(gain[1:], [2.5, 97.5])
            out.writerow([name, *(f"{v:.4f}" for v in (theirs[0], gain[0], low, high))])


if __name__ == "__main__":
    main()
