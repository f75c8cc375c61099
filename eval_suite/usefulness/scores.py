"""Classification scores and their bootstrap intervals.

Labels are class indices (n,), scores are (n, classes): larger means more likely. Every score is the mean
over the classes that occur in the labels, so a class without samples neither helps nor harms.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eval_suite.usefulness.areas import Counts, areas, once
from isotorus.randomness import generator

Labels = NDArray[np.integer]
Scores = NDArray[np.floating]

WORK = 10_000_000_000
"""Samples × classes × resamples that one interval may cost, about half a minute; beyond it, fewer of them."""


class Bootstrap(NamedTuple):
    """Scores of the same resampled test sets, one value a resample."""

    balanced_accuracy: NDArray[np.float64]
    auroc: NDArray[np.float64]


def accuracy(labels: Labels, scores: Scores) -> float:
    """Share of samples whose largest score is their class."""
    return float((scores.argmax(axis=1) == labels).mean())


def balanced_accuracy(labels: Labels, scores: Scores) -> float:
    """Mean over classes of the share of the class that is found."""
    return float(_balanced_accuracy(labels, scores, once(len(labels)))[0])


def auroc(labels: Labels, scores: Scores) -> float:
    """Area under the ROC curve: of class 1 for two classes, else the mean of one against the rest.

    The probability that a sample of the class scores above one that is not, ties counted half
    (Hanley & McNeil 1982). nan when fewer than two classes occur.
    """
    return float(_auroc(labels, scores, once(len(labels)))[0])


def quality(labels: Labels, scores: Scores) -> dict[str, float]:
    """What a setting is chosen by, the more important first."""
    return {"balanced_accuracy": balanced_accuracy(labels, scores), "auroc": auroc(labels, scores)}


def summary(labels: Labels, scores: Scores) -> dict[str, float]:
    return {"accuracy": accuracy(labels, scores), **quality(labels, scores)}


def per_class(labels: Labels, scores: Scores) -> list[dict[str, Any]]:
    """For each class support (samples), precision, recall and AUROC against the rest; nan where undefined.

    Precision is the share of the samples predicted as the class that are of it.
    """
    matrix = confusion(labels, scores)
    support, predicted, found = matrix.sum(axis=1), matrix.sum(axis=0), matrix.diagonal()
    of_class = labels[:, None] == np.arange(scores.shape[1])
    area = areas(of_class, scores, once(len(labels)))[0][:, 0]
    with np.errstate(invalid="ignore"):
        precision, recall = found / predicted, found / support
    return [
        {"support": int(n), "precision": float(p), "recall": float(r), "auroc": float(a)}
        for n, p, r, a in zip(support, precision, recall, area, strict=True)
    ]


def confusion(labels: Labels, scores: Scores) -> NDArray[np.int64]:
    """How many samples of class i are predicted as class j, (classes, classes)."""
    classes = scores.shape[1]
    pairs = labels.astype(np.int64) * classes + scores.argmax(axis=1)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


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
    """The central percentile interval [low, high] of bootstrap values; nan where they are undefined."""
    tail = 50 * (1 - coverage)
    known = values[~np.isnan(values)]
    if not len(known):
        return [float("nan")] * 2
    return [float(value) for value in np.percentile(known, [tail, 100 - tail])]


def _resample(labels: Labels, resamples: int, seed: int, start: int) -> Counts:
    """How often each sample is drawn, (resamples, n): as many draws from each class as it has samples."""
    counts = np.zeros((resamples, len(labels)), dtype=np.uint16)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        random = generator(seed, int(label), (0, 0, 0, start))
        draws = random.integers(len(members), size=(resamples, len(members)))
        flat = draws + np.arange(resamples)[:, None] * len(members)
        drawn = np.bincount(flat.ravel(), minlength=resamples * len(members))
        counts[:, members] = drawn.reshape(resamples, len(members))
    return counts


def _balanced_accuracy(labels: Labels, scores: Scores, counts: Counts) -> NDArray[np.float64]:
    """(resamples,) from `counts` (resamples, n)."""
    right = scores.argmax(axis=1) == labels
    found = [
        counts[:, of & right].sum(axis=1) / counts[:, of].sum(axis=1)
        for of in (labels == label for label in np.unique(labels))
    ]
    return np.mean(found, axis=0)


def _auroc(labels: Labels, scores: Scores, counts: Counts) -> NDArray[np.float64]:
    """(resamples,) from `counts` (resamples, n)."""
    present = np.unique(labels)
    if len(present) < 2:
        return np.full(len(counts), np.nan)
    judged = np.array([1]) if scores.shape[1] == 2 else present
    return areas(labels[:, None] == judged, scores[:, judged], counts)[0].mean(axis=0)
