"""Ridge regression of numbers on frozen features, its strength chosen on validation data."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_suite.usefulness import selection
from eval_suite.usefulness.selection import Array, Candidate, FeatureSets

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
    """Fit on train at every strength in `l2`, choose the strength on val, report scores on test.

    Features (n, d), or several sets of them by name, are standardised by mean and deviation of train; targets
    are (n, columns). Minimises mean_i (y_i − x_i·w − b)² + l2·‖w‖² in closed form, as scikit-learn's
    `Ridge(alpha=l2 * n)` does, but with one eigendecomposition for all strengths. Best on val is the largest
    R², then the largest Spearman correlation, then the strongest penalty. Returns what `selection.choose`
    does, with `l2` as the setting.
    """

    def candidates() -> Iterator[Candidate]:
        val, test = selection.named(val_x), selection.named(test_x)
        for name, x in selection.named(train_x).items():
            standardise = selection.standardiser(x)
            weights, bias = _ridge(standardise(x), train_y, sorted(l2))
            for strength, weight in zip(sorted(l2), weights, strict=True):
                predict = functools.partial(_predict, standardise, weight, bias)
                yield Candidate(
                    {**selection.label(name), "l2": strength},
                    predict(val[name]),
                    functools.partial(predict, test[name]),
                    functools.partial(predict, x),
                )

    return selection.choose(candidates(), val_y, test_y, "regression", train_y)


def predictions(x: Array, y: Array, held: Array, l2: Sequence[float]) -> list[NDArray[np.float64]]:
    """Fit on `x` (n, d) and `y` (n, columns) as `ridge_probe` does, at every strength in `l2`.

    Returns the numbers (m, columns) that each strength predicts for the samples `held` (m, d).
    """
    standardise = selection.standardiser(x)
    weights, bias = _ridge(standardise(x), y, l2)
    return [_predict(standardise, weight, bias, held) for weight in weights]


def linear_layers(
    x: Array, y: Array, l2: Sequence[float]
) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Fit on `x` (n, d) and `y` (n, columns) as `ridge_probe` does, at every strength in `l2`.

    Returns weight (columns, d) and bias (columns,) for features that are not standardised.
    """
    standardise = selection.standardiser(x)
    weights, bias = _ridge(standardise(x), y, l2)
    return [selection.unstandardised(weight.T, bias, standardise) for weight in weights]


def _ridge(
    x: NDArray[np.float64], y: Array, l2: Sequence[float]
) -> tuple[list[NDArray[np.float64]], NDArray[np.float64]]:
    """Return weights (d, columns) for each strength, and the bias (columns,), which is the mean of `y`.

    `x` (n, d) must be centred. The smaller of its two Gram matrices is decomposed once.
    """
    bias: NDArray[np.float64] = y.mean(axis=0, dtype=np.float64)
    n, d = x.shape
    if d <= n:
        values, vectors = np.linalg.eigh(x.T @ x / n)
        rotated = vectors.T @ (x.T @ (y - bias)) / n
    else:
        values, left = np.linalg.eigh(x @ x.T / n)
        vectors, rotated = x.T @ left / n, left.T @ (y - bias)
    return [vectors @ (rotated / (np.maximum(values, 0) + s)[:, None]) for s in l2], bias


def _predict(standardise: Any, weight: Array, bias: Array, x: Array) -> NDArray[np.float64]:
    return standardise(x) @ weight + bias
