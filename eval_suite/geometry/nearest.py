"""Nearest neighbours of every row of an embedding among the other rows, by Euclidean distance (FAISS).

Large searches use k-means cells like FAISS's `IndexIVFFlat`. They differ in comparing a whole cell with its
neighbouring cells in one matrix product, and in choosing the number of cells by the recall that is asked for.
On 50,000 rows of 384 dimensions with two threads, the graph of 15 neighbours takes 2.7 seconds, against 25.3
with scikit-learn's `kneighbors_graph` (benchmarks/RESULTS.md, "k-NN graph and its spectrum").
"""

from typing import NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

from eval_suite import faiss_gpu
from eval_suite.geometry import centring
from isotorus.errors import UserError
from isotorus.randomness import generator

Array = NDArray[np.floating]

RECALL = 0.999
"""Share of the true neighbours that a search of many rows must find.

Missed neighbours lie across the borders of cells, where the spectrum of the graph is sensitive: at 0.984, a
torus of 50,000 points lost 5 % of its spectral gap.
"""
EXACT_BELOW = 10_000
"""Number of rows up to which every search compares all pairs."""
CELL = 400
"""Average number of rows in a k-means cell: enough for fast matrix products, few compared with the data."""
SAMPLE = 500
"""Number of rows whose true neighbours decide how many cells are searched; as many others measure recall."""


class Neighbours(NamedTuple):
    """The nearest neighbours of n rows."""

    ids: NDArray[np.int64]
    """(n, k) row indices, nearest first; -1 where a neighbour is missing."""
    recall: float
    """Share of the true neighbours that were found; 1.0 for an exact search."""


def neighbours(x: Array, k: int, *, recall: float = RECALL) -> Neighbours:
    """Find the `k` rows nearest to each row of `x` (n, d), itself excluded, on a GPU if FAISS finds one.

    Up to `EXACT_BELOW` rows, or for a `recall` of 1, all pairs are compared. For more rows, k-means divides
    them into cells, and the rows of a cell are compared with those of its nearest cells only. The number of
    cells is chosen such that they contain the share `recall` of the true neighbours of some sampled rows. If
    that takes more than half of the cells, as for noise of many dimensions, all pairs are compared after
    all. Raises UserError as `prepared` does.
    """
    x = prepared(x, k)
    faiss_gpu.make_room()
    if recall < 1 and len(x) > EXACT_BELOW:
        approximate = _by_cells(x, k, recall)
        if approximate is not None:
            return approximate
    return Neighbours(_among(x, np.arange(len(x)), x, np.arange(len(x)), k), 1.0)


def prepared(x: Array, k: int) -> NDArray[np.float32]:
    """Check `x` (n, d), centre it, scale it to a largest value of 1, and return it as contiguous float32.

    FAISS computes distances from squared norms, which lose digits in float32 for a cloud far from the origin
    and overflow or vanish for very large or small values. Raises UserError as `centring.centred` does, and
    for `k` outside 1 … n - 1.
    """
    x = centring.centred(x)
    if not 1 <= k < len(x):
        raise UserError(
            f"k = {k} neighbours of {len(x)} samples: k lies in 1 … n - 1; lower k or add samples"
        )
    return np.ascontiguousarray(x / np.abs(x).max(), dtype=np.float32)


def _by_cells(x: NDArray[np.float32], k: int, recall: float) -> Neighbours | None:
    """Search cell by cell; None if more than half of the cells would have to be searched."""
    n, d = x.shape
    gpu = int(faiss_gpu.available())  # on one GPU: the others belong to other processes
    means = faiss.Kmeans(d, n // CELL, niter=8, max_points_per_centroid=100, seed=0, gpu=gpu)
    means.train(x)
    cell = means.assign(x)[1]
    centroids = np.asarray(means.centroids)
    by_distance = _knn(centroids, centroids, n // CELL)[1]

    rows = generator(0).permutation(n)[: 2 * SAMPLE]
    true = _among(x[rows], rows, x, np.arange(n), k)
    # The position of each true neighbour's cell in its row's list of cells, nearest cell first.
    place = np.argsort(by_distance, axis=1)[cell[rows, None], cell[true]]
    probes = int(np.quantile(place[:SAMPLE], recall, method="inverted_cdf")) + 1
    if probes > len(by_distance) // 2:
        return None

    order = np.argsort(cell, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(cell, minlength=len(by_distance)))[:-1])
    sizes = np.array([len(rows) for rows in members])
    ids = np.empty((n, k), dtype=np.int64)
    for own, near in zip(members, by_distance, strict=True):
        if len(own):
            needed = int(np.searchsorted(np.cumsum(sizes[near]), k + 1)) + 1
            others = np.concatenate([members[other] for other in near[: max(probes, needed)]])
            ids[own] = _among(x[own], own, x[others], others, k)
    return Neighbours(ids, float((place[SAMPLE:] < probes).mean()))


def _among(
    queries: NDArray[np.float32],
    query_ids: NDArray[np.integer],
    x: NDArray[np.float32],
    ids: NDArray[np.integer],
    k: int,
) -> NDArray[np.int64]:
    """Return the `ids` (m, k) of the rows of `x` nearest to each of m queries, without the query itself."""
    nearest_ids = ids[_knn(queries, x, k + 1)[1]]
    other = nearest_ids != query_ids[:, None]
    # If the query has many equal rows, it may be missing among its own neighbours: then drop the last one.
    other[other.all(axis=1), -1] = False
    return nearest_ids[other].reshape(len(queries), k)


def _knn(
    queries: NDArray[np.float32], x: NDArray[np.float32], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return squared distances and indices (m, k) of the rows of `x` nearest to each query, nearest first.

    Runs on a GPU if FAISS finds one and `k` is at most `faiss_gpu.MOST_NEIGHBOURS`.
    """
    if faiss_gpu.available() and k <= faiss_gpu.MOST_NEIGHBOURS:
        return faiss.knn_gpu(faiss_gpu.resources(), queries, x, k, device=faiss_gpu.device())
    return faiss.knn(queries, x, k)
