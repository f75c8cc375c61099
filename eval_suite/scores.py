"""Classification scores and their bootstrap intervals.

Labels are class indices (n,), scores are (n, classes): larger means more likely. Every score is the mean
over the classes that occur in the labels, so a class without samples neither helps nor harms.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.integer]
Scores = NDArray[np.floating]

WORK = 2_000_000_000
"""Samples × classes × resamples that one interval may cost, about a minute; beyond it, fewer resamples."""


class Bootstrap(NamedTuple):
    """Scores of the same resampled test sets, one value a resample."""

    balanced_accuracy: NDArray[np.float64]
    auroc: NDArray[np.float64]


def accuracy(labels: Labels, scores: Scores) -> float:
    """Share of samples whose largest score is their class."""
    return float((scores.argmax(axis=1) == labels).mean())


def balanced_accuracy(labels: Labels, scores: Scores) -> float:
    """Mean over classes of the share of the class that is found."""
    once = np.ones((1, len(labels)))
    return float(_balanced_accuracy(labels, scores, once)[0])


def auroc(labels: Labels, scores: Scores) -> float:
    """Area under the ROC curve: of class 1 for two classes, else the mean of one against the rest.

    The probability that a sample of the class scores above one that is not, ties counted half
    (Hanley & McNeil 1982). nan when fewer than two classes occur.
    """
    once = np.ones((1, len(labels)))
    return float(_auroc(labels, scores, once)[0])


def bootstrap(labels: Labels, scores: Scores, *, resamples: int = 1000, seed: int = 0) -> Bootstrap:
    """Both scores on `resamples` test sets drawn with replacement within each class.

    Equal labels and seed give the same test sets, so two classifiers' results are paired. Above `WORK`
    the number of resamples falls, to no fewer than 200.
    """
    resamples = int(np.clip(WORK // max(scores.size, 1), min(200, resamples), resamples))
    chunk = max(1, 5_000_000 // len(labels))
    parts = []
    for start in range(0, resamples, chunk):
        counts = _resample(labels, min(chunk, resamples - start), seed, start)
        parts.append((_balanced_accuracy(labels, scores, counts), _auroc(labels, scores, counts)))
    balanced, area = zip(*parts, strict=True)
    return Bootstrap(np.concatenate(balanced), np.concatenate(area))


def interval(values: NDArray[np.float64], coverage: float = 0.95) -> list[float]:
    """The central percentile interval [low, high] of bootstrap values."""
    tail = 50 * (1 - coverage)
    return [float(value) for value in np.percentile(values, [tail, 100 - tail])]


def _resample(labels: Labels, resamples: int, seed: int, start: int) -> NDArray[np.float64]:
    """How often each sample is drawn, (resamples, n): as many draws from each class as it has samples."""
    counts = np.zeros((resamples, len(labels)))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        philox = np.random.Philox(key=np.array([seed, label], np.uint64), counter=[0, 0, 0, start])
        generator = np.random.Generator(philox)
        draws = generator.integers(len(members), size=(resamples, len(members)))
        flat = draws + np.arange(resamples)[:, None] * len(members)
        drawn = np.bincount(flat.ravel(), minlength=resamples * len(members))
        counts[:, members] = drawn.reshape(resamples, len(members))
    return counts


def _balanced_accuracy(labels: Labels, scores: Scores, counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """(resamples,) from `counts` (resamples, n)."""
    right = scores.argmax(axis=1) == labels
    found = [counts[:, of] @ right[of] / counts[:, of].sum(axis=1) for of in _one_hot(labels)]
    return np.mean(found, axis=0)


def _auroc(labels: Labels, scores: Scores, counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """(resamples,) from `counts` (resamples, n)."""
    present = np.unique(labels)
    if len(present) < 2:
        return np.full(len(counts), np.nan)
    if scores.shape[1] == 2:
        return _area(labels == 1, scores[:, 1], counts)
    return np.mean([_area(labels == label, scores[:, label], counts) for label in present], axis=0)


def _area(positive: NDArray[np.bool_], score: Scores, counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Σ over positives of the weight of negatives below, plus half of those level, over all pairs."""
    order = np.argsort(score, kind="stable")
    ascending = score[order]
    starts = np.flatnonzero(np.concatenate([[True], ascending[1:] > ascending[:-1]]))
    weights = counts[:, order]
    positives = np.add.reduceat(weights * positive[order], starts, axis=1)
    negatives = np.add.reduceat(weights * ~positive[order], starts, axis=1)
    below = np.cumsum(negatives, axis=1) - negatives / 2
    return (positives * below).sum(axis=1) / (positives.sum(axis=1) * negatives.sum(axis=1))


def _one_hot(labels: Labels) -> list[NDArray[np.bool_]]:
    return [labels == label for label in np.unique(labels)]
