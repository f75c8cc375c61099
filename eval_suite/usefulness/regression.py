"""Numbers from frozen features: ridge regression, its strength chosen on val, and the scores of predictions.

Targets and predictions are (n, columns). Every score is the mean over the columns for which it is defined.
"""

import functools
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_suite.usefulness.label_scores import resampled
from eval_suite.usefulness.selection import Array, Candidate, FeatureSets, choose, label, named
from eval_suite.usefulness.standardise import standardiser

L2_GRID = tuple(float(l2) for l2 in np.logspace(-5, 2, 15))
"""L2 strengths relative to the mean squared error of standardised features."""


def ridge_probe(
    train_x: FeatureSets,
    train_y: Array,
    val_x: FeatureSets,
    val_y: Array,
    test_x: FeatureSets,
    test_y: Array,
    *,
    l2: Sequence[float] = L2_GRID,
) -> dict[str, Any]:
    """Fit on train at every strength in `l2`, choose on val by R², ties by Spearman, report test once.

    Features (n, d), or several sets of them by name, are standardised by the train split. The optimum of
    mean_i (y_i − x_i·w − b)² + l2·‖w‖² in closed form; scikit-learn's `Ridge(alpha=l2 * n)` is the same.
    Returns test_r2, test_mae, test_spearman; l2; val, one {l2, r2, spearman} for each strength;
    test_scores, the predictions (n, columns); of several feature sets also feature_set.
    """

    def candidates() -> Iterator[Candidate]:
        val, test = named(val_x), named(test_x)
        for name, x in named(train_x).items():
            standardised = standardiser(x)
            weights, bias = _ridge(standardised(x), train_y, sorted(l2))
            for strength, weight in zip(sorted(l2), weights, strict=True):
                predict = functools.partial(_predict, standardised, weight, bias)
                yield Candidate(
                    {**label(name), "l2": strength},
                    predict(val[name]),
                    functools.partial(predict, test[name]),
                )

    setting, predicted, tried = choose(candidates(), val_y, quality)
    return {
        **{f"test_{score}": value for score, value in summary(test_y, predicted).items()},
        **setting,
        "val": tried,
        "test_scores": predicted,
    }


def quality(y: Array, predicted: Array) -> dict[str, float]:
    """What a setting is chosen by, the more important first."""
    found = summary(y, predicted)
    return {"r2": found["r2"], "spearman": found["spearman"]}


def summary(y: Array, predicted: Array) -> dict[str, float]:
    """R² (coefficient of determination), mean absolute error, and Spearman's rank correlation."""
    means = _means(_scores(y, predicted, np.ones((1, len(y)))))
    return {name: float(values[0]) for name, values in means.items()}


def per_column(y: Array, predicted: Array) -> list[dict[str, float]]:
    """R², MAE and Spearman of each column; nan where undefined, as R² of a constant target is."""
    found = _scores(y, predicted, np.ones((1, len(y))))
    return [{name: float(values[c, 0]) for name, values in found.items()} for c in range(y.shape[1])]


def bootstrap(
    y: Array, predicted: Array, *, resamples: int = 1000, seed: int = 0
) -> dict[str, NDArray[np.float64]]:
    """The scores on `resamples` test sets drawn with replacement, (resamples,) each; a function of the seed.

    Equal numbers of samples and seeds give the same test sets, so two results are paired.
    """
    counts = resampled(len(y), resamples, seed)
    chunk = max(1, 5_000_000 // len(y))
    parts = [_scores(y, predicted, counts[i : i + chunk]) for i in range(0, resamples, chunk)]
    return _means({name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]})


def _ridge(x: NDArray[np.float64], y: Array, l2: Sequence[float]) -> tuple[list[Array], Array]:
    """Weights (d, columns) for each strength, by one eigendecomposition of the Gram matrix; the bias is the
    mean of y, as x is centred."""
    bias = y.mean(axis=0, dtype=np.float64)
    n, d = x.shape
    if d <= n:
        values, vectors = np.linalg.eigh(x.T @ x / n)
        rotated = vectors.T @ (x.T @ (y - bias)) / n
    else:
        values, left = np.linalg.eigh(x @ x.T / n)
        vectors, rotated = x.T @ left / n, left.T @ (y - bias)
    return [vectors @ (rotated / (np.maximum(values, 0) + s)[:, None]) for s in l2], bias


def _predict(standardised: Any, weight: Array, bias: Array, x: Array) -> NDArray[np.float64]:
    return standardised(x) @ weight + bias


def _scores(y: Array, predicted: Array, counts: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """(columns, resamples) each, from how often each sample is drawn, `counts` (resamples, n)."""
    total = counts.sum(axis=1, dtype=np.float64)
    weights = counts.astype(np.float64)
    found: dict[str, list[NDArray[np.float64]]] = {"r2": [], "mae": [], "spearman": []}
    with np.errstate(invalid="ignore", divide="ignore"):
        for target, guess in zip(y.T.astype(np.float64), predicted.T, strict=True):
            centred = target - target.mean()  # against cancellation
            variation = weights @ centred**2 - (weights @ centred) ** 2 / total
            variation[variation <= 1e-12 * (centred**2).sum()] = np.nan
            found["r2"].append(1 - weights @ (target - guess) ** 2 / variation)
            found["mae"].append(weights @ np.abs(target - guess) / total)
            found["spearman"].append(_correlation(_ranks(target, weights), _ranks(guess, weights), weights))
    return {name: np.stack(values) for name, values in found.items()}


def _ranks(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Midranks (resamples, n) of the samples drawn, minus those of the middle."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(group.max() + 1))
    level = np.add.reduceat(weights[:, order], starts, axis=1)
    return (np.cumsum(level, axis=1) - level / 2 - weights.sum(axis=1, keepdims=True) / 2)[:, group]


def _correlation(
    a: NDArray[np.float64], b: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Pearson's over the draws, (resamples,), of rows that are centred already; nan if one is constant."""
    product = (weights * a * b).sum(axis=1)
    squares = (weights * a**2).sum(axis=1) * (weights * b**2).sum(axis=1)
    return product / np.sqrt(np.where(squares > 0, squares, np.nan))


def _means(found: dict[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of no column at all: nan
        return {name: np.nanmean(values, axis=0) for name, values in found.items()}
