"""Intersection over union (IoU, Jaccard 1912) of predicted and true masks, from counts for each image.

scikit-learn's `jaccard_score` gives the same values. It is not used here because it takes one set of pixels
at a time, while the bootstrap needs the score of 1000 sets of images.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset.masks import IGNORED

Integers = NDArray[np.integer]


class Counts(NamedTuple):
    """Numbers of pixels of each image and class, (n, classes) each; `IGNORED` pixels do not count."""

    right: NDArray[np.int64]
    """Pixels that belong to the class and are predicted as it."""
    predicted: NDArray[np.int64]
    """Pixels that are predicted as the class."""
    true: NDArray[np.int64]
    """Pixels that belong to the class."""


def count(truth: Integers, predicted: Integers, classes: int) -> Counts:
    """Count the pixels of masks (n, …) with numbers below `classes`, where `truth` may also be `IGNORED`."""
    n, known = len(truth), truth != IGNORED
    image = np.arange(n).reshape(-1, *[1] * (truth.ndim - 1)) * classes

    def each(numbers: Integers, where: NDArray[np.bool_]) -> NDArray[np.int64]:
        places = (image + numbers.astype(np.int64))[where]
        return np.bincount(places, minlength=n * classes).reshape(n, classes)

    return Counts(each(truth, known & (truth == predicted)), each(predicted, known), each(truth, known))


def iou(counts: Counts, drawn: NDArray[np.integer] | None = None) -> NDArray[np.float64]:
    """Return the IoU (resamples, classes) over the images drawn; nan for a class without a true pixel.

    `drawn` (resamples, n) is how often each image counts; None: each once.
    """
    drawn = np.ones((1, len(counts.true)), np.int64) if drawn is None else drawn.astype(np.int64)
    right, predicted, true = (drawn @ of for of in counts)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(true > 0, right / (true + predicted - right), np.nan)


def mean_iou(counts: Counts, drawn: NDArray[np.integer] | None = None) -> NDArray[np.float64]:
    """Return the mean of the IoU (resamples,) over the classes that occur; nan where none does."""
    values = iou(counts, drawn)
    occurring = (~np.isnan(values)).sum(axis=1)
    return np.where(occurring > 0, np.nansum(values, axis=1) / np.maximum(occurring, 1), np.nan)


def of_constant(counts: Counts, number: int) -> float:
    """Return the mIoU of predicting one class everywhere."""
    everywhere = np.zeros_like(counts.true)
    everywhere[:, number] = counts.true.sum(axis=1)
    right = np.zeros_like(counts.true)
    right[:, number] = counts.true[:, number]
    return float(mean_iou(Counts(right, everywhere, counts.true))[0])
