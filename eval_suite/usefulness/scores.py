"""Scores of predicted classes, and their bootstrap intervals.

Labels are class indices (n,); predictions are (n, classes), larger for a more likely class. Every score is
the mean over the classes that occur in the labels.

These functions give the values of scikit-learn's `balanced_accuracy_score`, `recall_score` and so on. They
exist because the bootstrap needs each score on 1000 resamples of one test set, and scikit-learn takes one
resample at a time. The gain in time was not measured.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_suite.usefulness.areas import Counts, areas, once
from eval_suite.usefulness.label_scores import mean_over_columns
from eval_suite.usefulness.resampling import Groups, within_classes

Labels = NDArray[np.integer]
Scores = NDArray[np.floating]

WORK = 10_000_000_000
"""Largest samples × classes × resamples of one bootstrap, about half a minute; above it, fewer resamples."""


def accuracy(labels: Labels, scores: Scores) -> float:
    """Return the share of samples whose most likely class is the right one."""
    return float((scores.argmax(axis=1) == labels).mean())


def balanced_accuracy(labels: Labels, scores: Scores) -> float:
    """Return the mean over classes of the share of the class that is predicted right."""
    return float(_balanced_accuracy(labels, scores, once(len(labels)))[0])


def auroc(labels: Labels, scores: Scores) -> float:
    """Return the area under the ROC curve of class 1, or the mean over more than two classes.

    It is the probability that a sample of the class scores above another sample, where ties count half
    (Hanley & McNeil 1982). nan when fewer than two classes occur.
    """
    return float(_auroc(labels, scores, once(len(labels)))[0])


def summary(labels: Labels, scores: Scores) -> dict[str, float]:
    """Return accuracy, balanced accuracy and AUROC."""
    return {
        "accuracy": accuracy(labels, scores),
        "balanced_accuracy": balanced_accuracy(labels, scores),
        "auroc": auroc(labels, scores),
    }


def per_column(labels: Labels, scores: Scores) -> list[dict[str, Any]]:
    """Return for each class its support (number of samples), precision, recall and AUROC against the rest.

    Precision is the share of the predictions of the class that are right. A score is nan where undefined.
    """
    matrix = confusion(labels, scores)
    support, predicted, right = matrix.sum(axis=1), matrix.sum(axis=0), matrix.diagonal()
    of_class = labels[:, None] == np.arange(scores.shape[1])
    area = areas(of_class, scores, once(len(labels)))[0][:, 0]
    with np.errstate(invalid="ignore"):
        precision, recall = right / predicted, right / support
    return [
        {"support": int(n), "precision": float(p), "recall": float(r), "auroc": float(a)}
        for n, p, r, a in zip(support, precision, recall, area, strict=True)
    ]


def by_column(labels: Labels, scores: Scores, counts: Counts) -> dict[str, NDArray[np.float64]]:
    """Return for each score its values (classes, resamples), of which the score is the mean over classes.

    `counts` (resamples, n) is how often each sample is drawn. A value is nan where its class does not occur,
    or no other one does. Accuracy is not a mean over classes; it has a single row.
    """
    classes = scores.shape[1]
    right = scores.argmax(axis=1) == labels
    judged = np.array([1]) if classes == 2 else np.arange(classes)
    area = areas(labels[:, None] == judged, scores[:, judged], counts)[0]
    with np.errstate(invalid="ignore"):
        recalls = [
            counts[:, of & right].sum(axis=1) / counts[:, of].sum(axis=1)
            for of in (labels == label for label in range(classes))
        ]
        accuracies = counts[:, right].sum(axis=1) / counts.sum(axis=1)
    return {
        "accuracy": accuracies[None],
        "balanced_accuracy": np.array(recalls),
        "auroc": np.repeat(area, 2, axis=0) if classes == 2 else area,
    }


def confusion(labels: Labels, scores: Scores) -> NDArray[np.int64]:
    """Return the number of samples of class i that are predicted as class j, (classes, classes)."""
    classes = scores.shape[1]
    pairs = labels.astype(np.int64) * classes + scores.argmax(axis=1)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def bootstrap(
    labels: Labels, scores: Scores, *, resamples: int = 1000, seed: int = 0, groups: Groups = None
) -> dict[str, NDArray[np.float64]]:
    """Return both scores on `resamples` test sets drawn with replacement within each class.

    Samples of one of the `groups` (n,) are drawn together; a test set may then lack a class, which its mean
    leaves out. The draws depend only on labels, groups and seed, so the values of two classifiers are paired.
    Above `WORK` there are fewer resamples, but at least 200.
    """
    resamples = int(np.clip(WORK // max(scores.size, 1), min(200, resamples), resamples))
    chunk = max(1, 5_000_000 // len(labels))
    parts = []
    for start in range(0, resamples, chunk):
        counts = within_classes(labels, min(chunk, resamples - start), seed, start, groups)
        parts.append((_balanced_accuracy(labels, scores, counts), _auroc(labels, scores, counts)))
    balanced, area = zip(*parts, strict=True)
    return {"balanced_accuracy": np.concatenate(balanced), "auroc": np.concatenate(area)}


def interval(values: NDArray[np.float64], coverage: float = 0.95) -> list[float]:
    """Return the central percentile interval [low, high] of bootstrap values, nan if all of them are nan."""
    tail = 50 * (1 - coverage)
    known = values[~np.isnan(values)]
    if not len(known):
        return [float("nan")] * 2
    return [float(value) for value in np.percentile(known, [tail, 100 - tail])]


def _balanced_accuracy(labels: Labels, scores: Scores, counts: Counts) -> NDArray[np.float64]:
    """Return the score (resamples,); `counts` (resamples, n) is how often each sample is drawn."""
    right = scores.argmax(axis=1) == labels
    with np.errstate(invalid="ignore"):
        recalls = [
            counts[:, of & right].sum(axis=1) / counts[:, of].sum(axis=1)
            for of in (labels == label for label in np.unique(labels))
        ]
    return _mean_over_classes(np.array(recalls))


def _auroc(labels: Labels, scores: Scores, counts: Counts) -> NDArray[np.float64]:
    """Return the score (resamples,); `counts` (resamples, n) is how often each sample is drawn."""
    present = np.unique(labels)
    if len(present) < 2:
        return np.full(len(counts), np.nan)
    judged = np.array([1]) if scores.shape[1] == 2 else present
    return _mean_over_classes(areas(labels[:, None] == judged, scores[:, judged], counts)[0])


def _mean_over_classes(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean (resamples,) of values (classes, resamples) over the classes that a resample has."""
    return mean_over_columns(values) if np.isnan(values).any() else np.mean(values, axis=0)
