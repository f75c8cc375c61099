"""`python -m studies.torus.tables`: print the tables of docs/torus.md from results.jsonl beside this file."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from isotorus import jsonl
from isotorus.errors import exit_code

RESULTS = Path(__file__).resolve().parent / "results.jsonl"
Row = dict[str, Any]

LINES: dict[str, Callable[[Row], float]] = {
    "windings right, %": lambda c: 100 * c["windings"]["right_share"],
    "the same, of images that every action changes, %": lambda c: (
        100 * c["windings"]["visible"]["right_share"]
    ),
    "U over null, turned": lambda c: c["uniformity_over_null"],
    "orbits in the embedding that are tori, of 10": lambda c: c["orbits"]["tori"],
    "orbits in the pose slice that are tori, of 10": lambda c: c["orbits_pose"]["tori"],
}
"""Lines of a certificate that are one number."""
ALONE = {"lejepa": "LeJEPA alone at equal steps", "long": "LeJEPA alone at equal time"}
"""Runs of studies.torus.runs that the torus recipe is held against."""


def main() -> int:
    """Print a table of certificates, one of controls, and one of scores."""
    rows = {row["name"]: row for row in jsonl.read(RESULTS)}
    for family in ("torus", "light", "heavy", "cells"):
        print_certificates([rows[name] for name in sorted(rows) if name.startswith(f"{family}-s")])
    print_controls([row for name, row in rows.items() if name.startswith(("control", "cells-order"))])
    print_scores(rows)
    return 0


def print_certificates(rows: Sequence[Row]) -> None:
    """Print a line for each quantity: its value for every seed, and mean and 95 % interval over seeds."""
    certificates = [row["certificate"] for row in rows]
    if not certificates:
        return
    print("\n| | " + " | ".join(row["name"] for row in rows) + " | mean, 95 % interval over seeds |")
    print("|---" * (len(rows) + 2) + "|")
    lines = dict(LINES)
    for action in certificates[0]["equivariance_error"]:
        for key in ("median", "p90"):
            lines[f"{action}, error in degrees: {key}"] = partial(error, action=action, key=key)
    for label, value in lines.items():
        values = [value(certificate) for certificate in certificates]
        print(f"| {label} | " + " | ".join(f"{x:.1f}" for x in values) + f" | {over_seeds(values)} |")
    print("| verdict on the angles | " + " | ".join(c["angles"]["verdict"] for c in certificates) + " | |")
    print("| name | " + " | ".join(c["name"] for c in certificates) + " | |")


def error(certificate: Row, action: str, key: str) -> float:
    """Return a quantile of the equivariance error of an action in degrees."""
    return float(certificate["equivariance_error"][action][key])


def print_controls(rows: Sequence[Row]) -> None:
    """Print what the certificate calls each control."""
    print("\n| run | name | windings right, % | angles | orbits in the embedding |\n|---|---|---|---|---|")
    for row in rows:
        c = row["certificate"]
        print(
            f"| {row['name']} | {c['name']} | {100 * c['windings']['right_share']:.1f} | "
            f"{c['angles']['verdict']} | {c['orbits']['tori']} of {c['orbits']['images']} |"
        )


def print_scores(rows: dict[str, Row]) -> None:
    """Print accuracies on test images, and the paired differences of the torus to LeJEPA alone."""
    print("\n| run | k-NN, % | linear probe, % | CPU seconds |\n|---|---|---|---|")
    for name, row in rows.items():
        of = row["scores"]["pretrained"]
        scores = " | ".join(
            f"{100 * of[m]['accuracy']:.1f} ({of[m]['feature_set']})" for m in ("knn", "probe")
        )
        used = row["cpu_seconds"]
        print(f"| {name} | {scores} | {'' if used is None else f'{used:.0f}'} |")
    for family, alone in product(("light", "torus", "heavy"), ("lejepa", "long")):
        seeds = [seed for seed in range(3) if {f"{family}-s{seed}", f"{alone}-s{seed}"} <= rows.keys()]
        for method in ("knn", "probe") if seeds else ():
            torus, lejepa = (
                [100 * rows[f"{name}-s{seed}"]["scores"]["pretrained"][method]["accuracy"] for seed in seeds]
                for name in (family, alone)
            )
            less = [a - b for a, b in zip(torus, lejepa, strict=True)]
            each = ", ".join(f"{x:+.1f}" for x in less)
            print(f"{family} less {ALONE[alone]}, {method}: {each}; {over_seeds(less)}")


def over_seeds(values: Sequence[float], digits: int = 1) -> str:
    """Return the mean of values and its 95 % interval by Student's t; one value has no interval."""
    if len(values) < 2:
        return ", ".join(f"{x:.{digits}f}" for x in values)
    mean = np.mean(values)
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{mean:.{digits}f} ({mean - half:.{digits}f} to {mean + half:.{digits}f})"


if __name__ == "__main__":
    sys.exit(exit_code(main))
