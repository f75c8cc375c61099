"""Scores of predicted numbers, and their bootstrap samples.

Targets and predictions are (n, columns). Every score is the mean over the columns for which it is defined.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_suite.usefulness.label_scores import mean_over_columns
from eval_suite.usefulness.resampling import Groups, over_all

Array = NDArray[np.floating]


def summary(y: Array, predicted: Array) -> dict[str, float]:
    """Return R² (coefficient of determination), mean absolute error and Spearman's rank correlation."""
    measured = by_column(y, predicted, np.ones((1, len(y))))
    return {name: float(mean_over_columns(values)[0]) for name, values in measured.items()}


def per_column(y: Array, predicted: Array) -> list[dict[str, float]]:
    """Return the same scores for each column; nan where one is undefined, e.g. R² of a constant target."""
    measured = by_column(y, predicted, np.ones((1, len(y))))
    return [{name: float(values[c, 0]) for name, values in measured.items()} for c in range(y.shape[1])]


def bootstrap(
    y: Array, predicted: Array, *, resamples: int = 1000, seed: int = 0, groups: Groups = None
) -> dict[str, NDArray[np.float64]]:
    """Return the scores on `resamples` test sets drawn with replacement, (resamples,) each.

    Samples of one of the `groups` (n,) are drawn together. The draws depend only on the number of samples,
    the groups and the seed, so the values of two representations are paired.
    """
    counts = over_all(len(y), resamples, seed, groups)
    chunk = max(1, 5_000_000 // len(y))
    parts = [by_column(y, predicted, counts[i : i + chunk]) for i in range(0, resamples, chunk)]
    return {
        name: mean_over_columns(np.concatenate([part[name] for part in parts], axis=1)) for name in parts[0]
    }


def by_column(y: Array, predicted: Array, counts: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """Return each score (columns, resamples); `counts` (resamples, n) is how often each sample is drawn."""
    total = counts.sum(axis=1, dtype=np.float64)
    weights = counts.astype(np.float64)
    measured: dict[str, list[NDArray[np.float64]]] = {"r2": [], "mae": [], "spearman": []}
    with np.errstate(invalid="ignore", divide="ignore"):
        for target, guess in zip(y.T.astype(np.float64), predicted.T, strict=True):
            centred = target - target.mean()  # avoids cancellation in the variance
            variation = weights @ centred**2 - (weights @ centred) ** 2 / total
            variation[variation <= 1e-12 * (centred**2).sum()] = np.nan
            measured["r2"].append(1 - weights @ (target - guess) ** 2 / variation)
            measured["mae"].append(weights @ np.abs(target - guess) / total)
            ranks = _ranks(target, weights), _ranks(guess, weights)
            measured["spearman"].append(_correlation(*ranks, weights))
    return {name: np.stack(values) for name, values in measured.items()}


def _ranks(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the centred ranks (resamples, n) of the drawn samples; ties share the middle of their ranks."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(group.max() + 1))
    level = np.add.reduceat(weights[:, order], starts, axis=1)
    return (np.cumsum(level, axis=1) - level / 2 - weights.sum(axis=1, keepdims=True) / 2)[:, group]


def _correlation(
    a: NDArray[np.float64], b: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return Pearson's correlation (resamples,) of centred rows; nan where one of them is constant."""
    product = (weights * a * b).sum(axis=1)
    squares = (weights * a**2).sum(axis=1) * (weights * b**2).sum(axis=1)
    return product / np.sqrt(np.where(squares > 0, squares, np.nan))
