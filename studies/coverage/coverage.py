"""How often intervals of cross-validated scores contain the score that they are about.

    PYTHONPATH=. python studies/coverage/coverage.py [--replicates 400] [--only "200, balanced"]

Each replicate draws a data set of two Gaussian classes in 30 dimensions and two representations of it, and
cross-validates the probe of `eval_suite` in five folds, as the evaluation does. The truth is the mean, over
all replicates and folds, of the AUROC that the fitted probe has for new images, which has a closed form:
Φ(w·δ / √(2 w·w)) for weights w and means δ apart, where both classes have the identity as covariance.
Groups are of 4 images of one class, whose noise has a correlation of one half.

A replicate is a row of coverage.csv: its setting, its seed, and the estimate, truth and half-width of every
interval, for the score and for the difference of the two representations. Rows that are there are not
computed again. `--table` prints the shares of the intervals that contain the truth.
"""

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest, norm, t

from data_pipeline.targets.targets import Targets
from eval_suite.usefulness import probe
from eval_suite.usefulness.estimate import Estimate
from eval_suite.usefulness.folds.cross_validation import Method, Predicted, cross_validate, estimates
from eval_suite.usefulness.folds.division import Division, divide
from eval_suite.usefulness.scores import auroc

FILE = Path(__file__).parent / "coverage.csv"
DIMENSIONS, SIGNAL, BEHIND, CORRELATION = 30, 1.3, 0.25, 0.6
L2 = tuple(float(l2) for l2 in np.logspace(-2, 1, 4))
FOLDS, RESAMPLES = 5, 400
SETTINGS = {
    f"{n}, {'balanced' if ratio == 1 else '1:10'}{', groups of 4' if size > 1 else ''}": (n, ratio, size)
    for n in (200, 2000)
    for ratio in (1, 10)
    for size in (1, 4)
}
METHODS = ("combined", "bootstrap", "corrected_t", "nested")
Array = NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicates", type=int, default=400)
    parser.add_argument("--only", help="a part of the names of the settings that are run")
    parser.add_argument(
        "--nested", type=int, default=100, help="replicates that also have the nested interval"
    )
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.table:
        print("\n".join(table()))
        return
    done = {(row["setting"], int(row["seed"])) for row in rows()}
    for seed in range(given.replicates):
        for name, setting in SETTINGS.items():
            if (name, seed) not in done and (not given.only or given.only in name):
                found = replicate(*setting, seed, nested=seed < given.nested)
                write({"setting": name, "seed": seed} | {key: f"{of:.6g}" for key, of in found.items()})


def replicate(n: int, ratio: int, size: int, seed: int, nested: bool) -> dict[str, float]:
    """Return estimate, truth and half-widths for the first representation and for the difference."""
    random = np.random.default_rng([seed, n, ratio, size])
    groups = n // size
    positive = max(1, round(groups / (1 + ratio)))
    y = np.repeat(np.arange(groups) < positive, size).astype(np.int64)
    unit = np.repeat(np.arange(groups), size)

    def noise() -> Array:
        alone = random.normal(size=(n, DIMENSIONS))
        if size == 1:
            return alone
        return (random.normal(size=(groups, DIMENSIONS))[unit] + alone) / 2**0.5

    apart = np.zeros((2, DIMENSIONS))
    apart[:, :5] = np.array([[SIGNAL], [SIGNAL - BEHIND]]) / 5**0.5
    shared = noise()
    second = CORRELATION * shared + (1 - CORRELATION**2) ** 0.5 * noise()
    targets = Targets("multiclass", ["a", "b"], y, np.ones(n, bool), groups=(unit + 1).astype(np.uint64))
    division = divide({"train": targets}, FOLDS, 1, seed)
    results = [
        scored(part + y[:, None] * mean, y, mean, division, seed, nested)
        for part, mean in ((shared, apart[0]), (second, apart[1]))
    ]
    found = {}
    for prefix, values in (("", results[:1]), ("difference_", results)):
        combined, area, truth, parts = (
            minus(column) for column in zip(*[(r[0], r[1], r[2], r[3]) for r in values], strict=True)
        )
        found |= {f"{prefix}estimate": combined.value, f"{prefix}truth": float(truth)}
        for method, half in intervals(combined, area, parts, division.folds).items():
            found[f"{prefix}{method}"] = half
    return found


def minus(values):  # type: ignore[no-untyped-def]
    """Return the only value, or the first minus the second."""
    return values[0] if len(values) == 1 else values[0] - values[1]


def scored(
    x: Array, y: NDArray[np.int64], mean: Array, division: Division, seed: int, nested: bool
) -> tuple[Estimate, Array, float, Array]:
    """Return the estimate, the score of each fold, the truth, and what the nested interval is made from."""
    weights: list[Array] = []

    def predict(name: str, of: Array, labels: NDArray[np.int64], held: Array, l2: tuple[float, ...]):  # type: ignore[no-untyped-def]
        fit = probe._Fit(of, labels, l2, True, 2, "cpu")
        if len(l2) == 1:
            weights.append(fit._solution.weight[0, :, 0].numpy() / of.std(axis=0))
        return [fit.scores(held, member) for member in range(len(l2))], True

    method = Method("l2", L2, predict)
    found = cross_validate({"x": x}, y, "multiclass", division, method)
    truth = np.mean([norm.cdf(w @ mean / (2 * w @ w) ** 0.5) for w in weights])
    estimate = estimates(found, y, "multiclass", division, RESAMPLES, seed)["auroc"]
    fold = division.fold[0]
    of_fold = np.array([auroc(y[fold == f], found.predicted[0][fold == f]) for f in range(division.folds)])
    parts = np.zeros((0, division.folds))
    if nested:
        parts = inner_scores(x, y, fold, found)
    return estimate, of_fold, float(truth), parts


def inner_scores(x: Array, y: NDArray[np.int64], fold: NDArray[np.int64], found: Predicted) -> Array:
    """Return the score on fold j, without folds i and j, of the strength that was chosen for fold i."""
    folds = int(fold.max()) + 1
    scores = np.full((folds, folds), np.nan)
    for i in range(folds):
        for j in range(folds):
            if i != j:
                fitted, held = (fold != i) & (fold != j), fold == j
                l2 = (found.chosen[i]["l2"],)
                predicted, _ = probe.predictions(x[fitted], y[fitted], x[held], l2, classes=2)
                scores[i, j] = auroc(y[held], predicted[0])
    return scores


def intervals(combined: Estimate, of_fold: Array, inner: Array, folds: int) -> dict[str, float]:
    """Return the half-width of each interval of 95 %."""
    low, high = combined.interval()
    lower, upper = np.percentile(combined.resampled, [2.5, 97.5])
    spread = of_fold.var(ddof=1)
    # Nadeau & Bengio 2003: the folds' scores are independent but for what their fits have in common, n₂/n₁.
    corrected = t.ppf(0.975, folds - 1) * ((1 / folds + 1 / (folds - 1)) * spread) ** 0.5
    halves = {"combined": (high - low) / 2, "bootstrap": (upper - lower) / 2, "corrected_t": corrected}
    if inner.size:
        # Bates, Hastie & Tibshirani 2021, algorithm 1, for one division; b is the bootstrap's variance.
        outside = folds * combined.resampled.var()
        error = np.mean((np.nanmean(inner, axis=1) - of_fold) ** 2) - outside
        error = np.clip((folds - 1) / folds * error, outside / folds, outside)
        halves["nested"] = 1.96 * float(error) ** 0.5
    return {method: float(half) for method, half in halves.items()}


def rows() -> list[dict[str, str]]:
    """Return the rows that are there."""
    if not FILE.exists():
        return []
    with FILE.open(newline="") as stream:
        return list(csv.DictReader(stream))


def write(row: dict[str, object]) -> None:
    """Append a row."""
    columns = ["setting", "seed"]
    for prefix in ("", "difference_"):
        columns += [f"{prefix}{name}" for name in ("estimate", "truth", *METHODS)]
    new = not FILE.exists()
    with FILE.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, columns, restval="")
        if new:
            writer.writeheader()
        writer.writerow(row)


def table() -> Iterator[str]:
    """Yield a Markdown row for each setting: how often each interval has the truth, and its half-width."""
    by_setting: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows():
        by_setting[row["setting"]].append(row)
    for prefix, what in (("", "score"), ("difference_", "difference")):
        yield f"| {what} of | replicates | truth | {' | '.join(METHODS)} |"
        yield "|---" * (3 + len(METHODS)) + "|"
        for setting in SETTINGS:
            of = by_setting[setting]
            if not of:
                continue
            truth = np.mean([float(row[f"{prefix}truth"]) for row in of])
            cells = []
            for method in METHODS:
                with_it = [row for row in of if row[f"{prefix}{method}"]]
                errors = np.array([abs(float(row[f"{prefix}estimate"]) - truth) for row in with_it])
                halves = np.array([float(row[f"{prefix}{method}"]) for row in with_it])
                hits = int((errors <= halves).sum())
                low, high = binomtest(hits, len(with_it)).proportion_ci(method="wilson")
                share = f"{100 * hits / len(with_it):.1f} ({100 * low:.0f}-{100 * high:.0f})"
                cells.append(f"{share}, ±{100 * halves.mean():.1f}")
            yield f"| {setting} | {len(of)} | {truth:.3f} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
