"""Bootstrap test sets: how often each sample is drawn, where samples of one group are drawn together.

Images of one patient are alike, so intervals from single images would be too narrow; whole groups are the
independent draws (cluster bootstrap: Davison & Hinkley 1997, Bootstrap Methods and their Application, §3.8).
"""

import numpy as np
from numpy.typing import NDArray

from eval_suite.usefulness.areas import Counts
from isotorus.randomness import generator

Labels = NDArray[np.integer]
Groups = NDArray[np.uint64] | None
"""Group of each sample (n,), 0 for a sample that is a group of its own; None if all are."""


def over_all(n: int, resamples: int, seed: int, groups: Groups = None) -> Counts:
    """Return how often each of `n` samples is drawn, (resamples, n): as many draws as there are groups."""
    unit = np.arange(n) if groups is None else units(groups)
    number = int(unit.max()) + 1
    counts = np.empty((resamples, n), dtype=np.uint16)
    for b in range(resamples):
        drawn = generator(seed, b).integers(number, size=number)
        counts[b] = np.bincount(drawn, minlength=number)[unit]
    return counts


def within_classes(
    labels: Labels, resamples: int, seed: int, start: int = 0, groups: Groups = None
) -> Counts:
    """Return how often each sample is drawn, (resamples, n); each class keeps its number of groups.

    A group belongs to the class that most of its samples have. Without groups each class keeps its number of
    samples. The draws of resamples from `start` on are independent of those before.
    """
    unit = np.arange(len(labels)) if groups is None else units(groups)
    classes = labels if groups is None else most_frequent(labels, unit)
    counts = np.zeros((resamples, len(classes)), dtype=np.uint16)
    for label in np.unique(classes):
        members = np.flatnonzero(classes == label)
        random = generator(seed, int(label), (0, 0, 0, start))
        draws = random.integers(len(members), size=(resamples, len(members)))
        flat = draws + np.arange(resamples)[:, None] * len(members)
        drawn = np.bincount(flat.ravel(), minlength=resamples * len(members))
        counts[:, members] = drawn.reshape(resamples, len(members))
    return counts[:, unit]


def units(groups: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return a number from 0 up for the group of each sample; samples of group 0 have one of their own."""
    alone = groups == 0
    _, unit = np.unique(groups, return_inverse=True)
    unit = unit.astype(np.int64)
    unit[alone] = unit.max(initial=0) + 1 + np.arange(alone.sum())
    return np.unique(unit, return_inverse=True)[1].astype(np.int64)


def most_frequent(labels: Labels, unit: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the class that most samples of each unit have, the smallest among equals."""
    pairs, counts = np.unique(np.stack([unit, labels.astype(np.int64)], axis=1), axis=0, return_counts=True)
    order = np.lexsort((pairs[:, 1], -counts, pairs[:, 0]))
    first = order[np.unique(pairs[order, 0], return_index=True)[1]]
    return pairs[first, 1]
