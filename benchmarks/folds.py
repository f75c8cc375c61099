"""Compare the cost of cross-validating the probe and k-NN with that of a single split.

    python benchmarks/folds.py [--samples 2000] [--width 448] [--sets 1] [--folds 5]

A single split fits on 85 % of the samples and chooses on 15 %, and is scored on 15 % more. The folds are
those of the samples of train and val; both are measured with bootstrap intervals, and without a test split
beside.
Features are random, with a signal in five directions and variances that fall as those of an encoder do. Times
are CPU time of the process with one thread; the two take turns, and the best turn of each counts. Prints a
Markdown row for RESULTS.md.
"""

import argparse
import platform
import time
from collections.abc import Callable

import numpy as np
import torch

from data_pipeline.targets.targets import Targets
from eval_suite import usefulness


def samples(n: int, width: int, sets: int) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Targets]]:
    """Make features of `n` samples of two classes in train and val, and 15 % more in test."""
    random = np.random.default_rng(0)
    features: dict[str, dict[str, np.ndarray]] = {f"set {i}": {} for i in range(sets)}
    targets = {}
    for split, share in (("train", 0.85), ("val", 0.15), ("test", 0.15)):
        y = random.integers(2, size=round(n * share))
        for of in features.values():
            x = random.normal(size=(len(y), width))
            x[:, :5] += 0.5 * y[:, None]
            of[split] = (x * np.logspace(0, -1.5, width)).astype(np.float32)
        targets[split] = Targets("multiclass", ["a", "b"], y, np.ones(len(y), bool))
    return features, targets


def best(works: list[Callable[[], object]], turns: int) -> list[float]:
    """Return the CPU seconds of the best turn of each."""
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(turns):
        for work, taken in zip(works, seconds, strict=True):
            began = time.process_time()
            work()
            taken.append(time.process_time() - began)
    return [min(taken) for taken in seconds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--width", type=int, default=448)
    parser.add_argument("--sets", type=int, default=1)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    features, targets = samples(given.samples, given.width, given.sets)
    inside = {split: targets[split] for split in ("train", "val")}
    division = usefulness.divide(inside, given.folds, 1, 0)
    row = []
    for metric in ("probe", "knn"):
        options = usefulness.Options(metrics=(metric,))
        single, folds = best(
            [
                lambda options=options: usefulness.measure(features, targets, options),
                lambda options=options: usefulness.measure(features, inside, options, division=division),
            ],
            given.turns,
        )
        row.append(f"{single:.2f} | {folds:.2f} | **{folds / single:.1f}×**")
    sizes = f"{given.samples:,} × {given.width}, {given.sets} feature set(s), {given.folds} folds"
    print(f"| {platform.machine()}, 1 thread | {sizes} | {' | '.join(row)} | `python benchmarks/folds.py` |")


if __name__ == "__main__":
    main()
