"""Scores of predicted labels that may occur together, and their bootstrap samples.

Labels are 0s and 1s (n, labels); predictions are (n, labels), larger for a more likely label. Every score is
the mean over the labels for which it is defined (macro average).
"""

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_suite.usefulness.areas import Counts, areas, once
from eval_suite.usefulness.resampling import Groups, over_all

Labels = NDArray[np.integer]
Scores = NDArray[np.floating]


def summary(labels: Labels, scores: Scores) -> dict[str, float]:
    """Return AUROC and average precision."""
    return {name: float(values[0]) for name, values in _means(labels, scores, once(len(labels))).items()}


def per_column(labels: Labels, scores: Scores) -> list[dict[str, Any]]:
    """Return for each label its support (samples that have it), AUROC and average precision or nan."""
    area, precision = areas(labels > 0, scores, once(len(labels)))
    return [
        {"support": int(n), "auroc": float(a), "average_precision": float(p)}
        for n, a, p in zip((labels > 0).sum(axis=0), area[:, 0], precision[:, 0], strict=True)
    ]


def bootstrap(
    labels: Labels, scores: Scores, *, resamples: int = 1000, seed: int = 0, groups: Groups = None
) -> dict[str, NDArray[np.float64]]:
    """Return both scores on `resamples` test sets drawn with replacement, (resamples,) each.

    Samples of one of the `groups` (n,) are drawn together. The draws depend only on the number of samples,
    the groups and the seed, so the values of two representations are paired.
    """
    counts = over_all(len(labels), resamples, seed, groups)
    return _means(labels, scores, counts)


def by_column(labels: Labels, scores: Scores, counts: Counts) -> dict[str, NDArray[np.float64]]:
    """Return for each score its values (labels, resamples), of which the score is the mean over labels.

    `counts` (resamples, n) is how often each sample is drawn.
    """
    area, precision = areas(labels > 0, scores, counts)
    return {"auroc": area, "average_precision": precision}


def _means(labels: Labels, scores: Scores, counts: Counts) -> dict[str, NDArray[np.float64]]:
    measured = by_column(labels, scores, counts)
    return {name: mean_over_columns(values) for name, values in measured.items()}


def mean_over_columns(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average a score (columns, resamples) over the columns for which it is defined; nan without any."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy warns about means of nothing
        mean: NDArray[np.float64] = np.nanmean(values, axis=0)
        return mean
