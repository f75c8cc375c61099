"""`python -m studies.quickstart.figure gains.csv curve.png`: score against number of labels."""

import csv
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NAMES = {
    "untrained": "the same encoder untrained, best of three",
    "pixels": "raw pixels",
    "together": "HOG with histograms",
    "handmade": "HOG, histograms, or both: the best",
    "texture": "histograms of greys and of three radii of LBP",
}
ALL = 1630
"""Labels of four of five folds."""


def main(source: Path, target: Path) -> None:
    """Draw what `studies.quickstart.compare` has printed."""
    table = list(csv.DictReader(source.open(newline="")))
    figure, axes = plt.subplots(figsize=(6.4, 4.2), dpi=110)
    curves = [("pretrained, mean of seeds", "auroc", "half", [r for r in table if r["kind"] == "pixels"])]
    curves += [(NAMES[k], "theirs", "their_half", [r for r in table if r["kind"] == k]) for k in NAMES]
    for number, (label, score, half, rows) in enumerate(curves):
        x = [(ALL if r["labels"] == "all" else int(r["labels"])) * 1.04 ** (number - 2) for r in rows]
        y, bars = [float(r[score]) for r in rows], [float(r[half]) for r in rows]
        width = 1.4 if number else 2.6
        axes.errorbar(x, y, bars, label=label, linewidth=width, elinewidth=0.8, capsize=2, marker="o", ms=3)
    axes.set_xscale("log")
    axes.set_xticks([20, 100, 1000, ALL], ["20", "100", "1,000", "all"])
    axes.minorticks_off()
    axes.set_xlabel("labelled solar cells that the probe is fitted on")
    axes.set_ylabel("AUROC out of fold, 95 % intervals")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(target, metadata={"Software": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
