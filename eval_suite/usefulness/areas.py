"""Areas under ROC and precision-recall curves on many resamples of one test set.

Replaces scikit-learn's `roc_auc_score` and `average_precision_score`, which sort the samples again for every
resample. Here the samples are sorted once, and each resample is one pass over them, compiled by numba. The
results are the same; the gain in time was not measured.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from isotorus.processes import usable_cores

Counts = NDArray[np.uint16]
"""How often each sample is drawn, (resamples, n)."""


def areas(
    positive: NDArray[np.bool_], score: NDArray[np.floating], counts: Counts
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return AUROC and average precision, (columns, resamples) each, for `positive` and `score` (n, columns).

    AUROC is the probability that a positive scores above a negative, where ties count half (Hanley & McNeil
    1982). Average precision is the sum, over the distinct scores from high to low, of the recall gained times
    the precision so far, as in scikit-learn. Both are nan for a resample without positives, and AUROC for one
    without negatives.
    """
    columns, result = score.shape[1], np.empty((2, score.shape[1], len(counts)))

    def work(column: int) -> None:
        order = np.argsort(-score[:, column])
        ordered = score[order, column]
        last = np.append(ordered[1:] != ordered[:-1], True)  # the last sample of each distinct score
        _areas(order, positive[order, column], last, counts, result[0, column], result[1, column])

    threads = min(columns, usable_cores())
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(columns)))
    else:
        for column in range(columns):
            work(column)
    return result[0], result[1]


def once(n: int) -> Counts:
    """Return counts (1, n) that take every sample once: the test set itself as the only resample."""
    return np.ones((1, n), dtype=np.uint16)


def _jit(function: Callable[..., Any]) -> Any:
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # numba has no folder for its cache
        return numba.njit(nogil=True, error_model="numpy")(function)


@_jit
def _areas(order, positive, last, counts, auroc, precision):  # type: ignore[no-untyped-def]
    for b in range(len(counts)):
        drawn = counts[b]
        # Pairs of a positive above a negative, and recall times precision; both are divided at the end.
        pairs = gained = 0.0
        positives = negatives = here = others = np.int64(0)
        for i in range(len(order)):
            count = np.int64(drawn[order[i]])
            if positive[i]:
                here += count
            else:
                others += count
            if last[i]:
                pairs += others * (positives + 0.5 * here)
                positives += here
                negatives += others
                if here > 0:
                    gained += here * (positives / (positives + negatives))
                here = others = np.int64(0)
        auroc[b] = pairs / (np.float64(positives) * negatives)
        precision[b] = gained / positives
