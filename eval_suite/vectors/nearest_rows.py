"""The nearest other rows of each row of a file of vectors, by cosine similarity."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eval_suite.geometry import nearest
from eval_suite.vectors.about import Neighbours

_BLOCK = 4096
"""Rows whose similarities are computed at a time."""


class Found(NamedTuple):
    """The nearest other rows of n rows, the most similar first."""

    ids: NDArray[np.int64]
    """Row numbers (n, k)."""
    similarities: NDArray[np.float32]
    """Cosine similarities (n, k)."""
    about: Neighbours


def find(unit: NDArray[np.float32], k: int) -> Found:
    """Return the `k` rows that are nearest to each row of `unit` (n, d), whose rows have length 1.

    For such rows the order of distances is that of cosines, so `geometry.nearest` searches: exactly up to
    10,000 rows, and beyond with its recall. Rows that are equally near come in their order. Raises UserError
    as `nearest.prepared` does, such as for `k` ≥ n.
    """
    found = nearest.neighbours(unit, k)
    similarities = np.empty(found.ids.shape, np.float32)
    ids = np.empty_like(found.ids)
    for start in range(0, len(unit), _BLOCK):
        rows = slice(start, start + _BLOCK)
        near = np.sort(found.ids[rows], axis=1)
        cosines = np.einsum("nd,nkd->nk", unit[rows], unit[near])
        order = np.argsort(-cosines, axis=1, kind="stable")
        ids[rows] = np.take_along_axis(near, order, axis=1)
        similarities[rows] = np.take_along_axis(cosines, order, axis=1).clip(-1, 1)
    return Found(ids, similarities, Neighbours(k=k, recall=float(found.recall)))
