"""Edge collapse: fewer edges, the same persistent homology.

A Rips complex is fixed by its edges. An edge that is dominated (some vertex sees every common neighbour of
its two ends) can be left out without changing the homotopy type, so it may enter the filtration later, at
the first value where nothing dominates it, or never. Every barcode stays exactly what it was, and what is
left of the edges is so few that homology in dimension 2 costs a fraction.

Boissonnat & Pritam 2020; the shift of an edge to a later value is Glisse & Pritam 2022, arXiv:2203.07022.
"""

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array


def collapse(distances: NDArray[np.floating], threshold: float) -> coo_array:
    """The edges that remain of the Rips filtration of `distances` (n, n) up to `threshold`, inclusive.

    Returns their filtration values, upper triangle, float32 (n, n). Barcodes of the flag filtration of
    these edges equal those of the distances in every dimension, but for bars of length zero.
    """
    values = np.array(distances, dtype=np.float32)
    values[values > np.float32(threshold)] = np.inf
    np.fill_diagonal(values, 0)
    rows, columns = np.triu_indices(len(values), k=1)
    lengths = values[rows, columns]
    kept = np.flatnonzero(np.isfinite(lengths))
    # Long edges first: they are the most and collapse the most.
    order = kept[np.argsort(-lengths[kept], kind="stable")]
    _shift(values, rows[order], columns[order])
    lengths = values[rows, columns]
    left = np.isfinite(lengths)
    return coo_array((lengths[left], (rows[left], columns[left])), shape=values.shape)


@numba.njit(cache=True)
def _shift(values, rows, columns):  # type: ignore[no-untyped-def]
    """Move each edge, in turn, to the first value at which nothing dominates it; inf where there is none."""
    n = len(values)
    common = np.empty(n, np.int64)
    arrival = np.empty(n, np.float32)
    for edge in range(len(rows)):
        u, v = rows[edge], columns[edge]
        start = values[u, v]
        count = 0
        for w in range(n):
            if w != u and w != v:
                since = max(values[u, w], values[v, w])
                if since < np.inf:
                    common[count] = w
                    arrival[count] = max(since, start)
                    count += 1
        now = _undominated(values, common[:count], arrival[:count], start)
        values[u, v] = now
        values[v, u] = now


@numba.njit(cache=True)
def _undominated(values, common, arrival, start):  # type: ignore[no-untyped-def]
    """The first value ≥ start at which no vertex of `common` is adjacent to all of it that has arrived."""
    order = np.argsort(arrival)
    common, arrival = common[order], arrival[order]
    count = len(common)
    now = start
    present = np.searchsorted(arrival, now, side="right")
    while True:
        # How far the best of those present reaches: until the first it does not see when that arrives.
        reach = present
        found = False
        for i in range(present):
            row = values[common[i]]
            dominates = True
            for j in range(present):
                if row[common[j]] > now:
                    dominates = False
                    break
            if dominates:
                found = True
                while reach < count and row[common[reach]] <= arrival[reach]:
                    reach += 1
                break
        if not found:
            return now
        if reach == count:
            return np.float32(np.inf)
        now = arrival[reach]
        while reach < count and arrival[reach] <= now:
            reach += 1
        present = reach
