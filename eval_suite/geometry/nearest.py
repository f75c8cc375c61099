"""Nearest neighbours of every row of an embedding among the other rows, by Euclidean distance (FAISS).

Large searches use k-means cells like FAISS's `IndexIVFFlat`. They differ in comparing all rows that search a
cell in one matrix product, and in choosing the cells that a row searches by the distance from their borders
and by the recall that is asked for.
Figures beside scikit-learn's `kneighbors_graph` are in benchmarks/RESULTS.md, "k-NN graph and its spectrum".
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
"""Number of rows whose true neighbours decide which cells are searched; as many others measure recall."""


class Neighbours(NamedTuple):
    """The nearest neighbours of n rows."""

    ids: NDArray[np.int64]
    """(n, k) row indices, nearest first; -1 where a neighbour is missing."""
    recall: float
    """Share of the true neighbours that were found; 1.0 for an exact search."""


def neighbours(x: Array, k: int, *, recall: float = RECALL) -> Neighbours:
    """Find the `k` rows nearest to each row of `x` (n, d), itself excluded, on a GPU if FAISS finds one.

    Up to `EXACT_BELOW` rows, or for a `recall` of 1, all pairs are compared. For more rows, k-means divides
    them into cells, and a row is compared with its own cell and with near ones whose border is close. How
    close is chosen such that these cells contain the share `recall` of the true neighbours of some sampled
    rows. If that takes more than half of the pairs, as for noise of many dimensions, all pairs are compared
    after all. A GPU searches cells in float16 if the recall allows it, and all pairs always in float32.
    Raises UserError as `prepared` does.
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
    x /= centring.largest(x)
    return np.ascontiguousarray(x, dtype=np.float32)


def _by_cells(x: NDArray[np.float32], k: int, recall: float) -> Neighbours | None:
    """Search cell by cell; None if that would compare more than half of all pairs."""
    n, d = x.shape
    cells = n // CELL
    gpu = int(faiss_gpu.available())  # on one GPU: the others belong to other processes
    means = faiss.Kmeans(d, cells, niter=8, max_points_per_centroid=100, seed=0, gpu=gpu)
    means.train(x)
    cell = means.assign(x)[1]
    borders = _Borders(np.asarray(means.centroids))
    order = np.argsort(cell, kind="stable")
    x, cell = x[order], cell[order]  # now each cell is a slice of the rows
    ends = np.searchsorted(cell, np.arange(cells), side="right")
    starts = np.concatenate([[0], ends[:-1]])

    rows = generator(0).permutation(n)[: 2 * SAMPLE]
    true = _among(x[rows], rows, x, np.arange(n), k)
    chosen, measured = np.split(rows, 2)
    stored = _stored(x, chosen, true[:SAMPLE], recall)
    best = _Best(n, k + 1)
    for start, end in zip(starts, ends, strict=True):
        best.search(stored, np.arange(start, end), start, end)
    visitor, visited = _visits(borders, x, cell, best.farthest(), chosen, true[:SAMPLE], recall)
    if len(visitor) > n * cells / 2:
        return None
    guests = np.split(visitor, np.cumsum(np.bincount(visited, minlength=cells))[:-1])
    for visitors, start, end in zip(guests, starts, ends, strict=True):
        best.search(stored, visitors, start, end)
    found = _without_self(best.ids, np.arange(n))
    ids = np.empty_like(found)
    ids[order] = order[found]
    return Neighbours(ids, _share(found[measured], true[SAMPLE:]))


def _visits(
    borders: "_Borders",
    x: NDArray[np.float32],
    cell: NDArray[np.integer],
    reach: NDArray[np.float32],
    chosen: NDArray[np.integer],
    true: NDArray[np.integer],
    recall: float,
) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Return the rows that search another cell, and which, sorted by cell.

    `x` (n, d) are the rows, `cell` (n,) their cells, `reach` (n,) the distance of the k-th neighbour in the
    own cell, and `true` (m, k) the neighbours of the rows `chosen` (m,). A row searches a cell that is among
    the nearest ones of its own cell, if the border lies within a part of its reach. The number of cells and
    the part are those that keep the share `recall` of the true neighbours.
    """
    own, others = cell[chosen, None], cell[true]
    kept = (1 + recall) / 2  # by each of the two conditions
    rank = borders.rank()
    number = np.quantile(rank[own, others], kept, method="inverted_cdf")
    to_true = np.take_along_axis(borders.distance(x[chosen], own[:, 0]), others, axis=1)
    part = float(np.quantile(to_true / reach[chosen, None], kept, method="inverted_cdf"))
    # A row whose own cell is too small has an infinite reach, and searches all cells.
    alone, reach = np.isinf(reach)[:, None], reach[:, None] * max(part, float(np.finfo(np.float32).tiny))

    found = []
    for rows in np.array_split(np.arange(len(x)), len(x) // EXACT_BELOW + 1):
        near = rank[cell[rows]]
        near = (near > 0) & ((near <= number) | alone[rows])
        row, other = np.nonzero(near & (borders.distance(x[rows], cell[rows]) <= reach[rows]))
        found.append((rows[row], other))
    visitor, visited = map(np.concatenate, zip(*found, strict=True))
    order = np.argsort(visited, kind="stable")
    return visitor[order], visited[order]


class _Borders:
    """The borders between k-means cells: planes halfway between two centroids."""

    def __init__(self, centroids: NDArray[np.float32]) -> None:
        self.centroids = centroids
        self.squared = (centroids**2).sum(axis=1)
        between = self.squared[:, None] + self.squared - 2 * centroids @ centroids.T
        self.apart = np.sqrt(np.maximum(between, np.finfo(np.float32).tiny))

    def rank(self) -> NDArray[np.integer]:
        """Return for each cell the place (cells, cells) of the others, nearest first; its own is 0."""
        apart = self.apart.copy()
        np.fill_diagonal(apart, 0)
        return np.argsort(np.argsort(apart, axis=1), axis=1)

    def distance(self, x: NDArray[np.float32], own: NDArray[np.integer]) -> NDArray[np.float32]:
        """Return the distance (m, cells) of each row (m, d) of the cells `own` (m,) from each other cell.

        It is that to the border with the other cell, behind which all its rows lie. To the own cell it is 0.
        """
        power = self.squared - 2 * x @ self.centroids.T
        return (power - np.take_along_axis(power, own[:, None], axis=1)) / (2 * self.apart[own])


class _Best:
    """The nearest rows found so far for each of n rows."""

    def __init__(self, n: int, k: int) -> None:
        self.distances = np.full((n, k), np.inf, dtype=np.float32)
        self.ids = np.full((n, k), -1)

    def search(self, x: Array, rows: NDArray[np.integer], start: int, end: int) -> None:
        """Search rows `start` to `end` of `x` for neighbours of the `rows`."""
        k = min(self.ids.shape[1], int(end - start))
        if not k or not len(rows):
            return
        distances, ids = _knn(x[rows], x[start:end], k)
        better = distances[:, 0] < self.distances[rows, -1]
        rows = rows[better]
        distances = np.concatenate([self.distances[rows], distances[better]], axis=1)
        ids = np.concatenate([self.ids[rows], ids[better] + start], axis=1)
        nearest = np.argsort(distances, axis=1)[:, : self.ids.shape[1]]
        self.distances[rows] = np.take_along_axis(distances, nearest, axis=1)
        self.ids[rows] = np.take_along_axis(ids, nearest, axis=1)

    def farthest(self) -> NDArray[np.float32]:
        """Return the distance (n,) of the last of the rows found for each row, more than 0."""
        return np.sqrt(np.maximum(self.distances[:, -1], np.finfo(np.float32).tiny))


def _stored(
    x: NDArray[np.float32], rows: NDArray[np.integer], true: NDArray[np.integer], recall: float
) -> Array:
    """Return `x` in float16 if a GPU then still finds the share `recall` of the neighbours `true` of `rows`.

    Otherwise return `x` itself. In float16, half of the bytes are sent and matrix products are faster, but
    rounding swaps neighbours that are nearly as near. On a CPU it only costs time.
    """
    if faiss_gpu.available():
        halves = x.astype(np.float16)
        found = _among(halves[rows], rows, halves, np.arange(len(x)), true.shape[1])
        if _share(found, true) >= recall:
            return halves
    return x


def _share(found: NDArray[np.integer], true: NDArray[np.integer]) -> float:
    """Return the share of the ids `true` (m, k) that are `found` (m, k) in their row."""
    return float((true[:, :, None] == found[:, None]).any(axis=2).mean())


def _among(
    queries: Array,
    query_ids: NDArray[np.integer],
    x: Array,
    ids: NDArray[np.integer],
    k: int,
) -> NDArray[np.int64]:
    """Return the `ids` (m, k) of the rows of `x` nearest to each of m queries, without the query itself."""
    return _without_self(ids[_knn(queries, x, k + 1)[1]], query_ids)


def _without_self(ids: NDArray[np.int64], own: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the `ids` (m, k + 1) of the nearest rows without the id that is `own` (m,), (m, k)."""
    other = ids != own[:, None]
    # If a row has many equal ones, it may be missing among its own neighbours: then drop the last one.
    other[other.all(axis=1), -1] = False
    return ids[other].reshape(len(ids), -1)


def _knn(queries: Array, x: Array, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return squared distances and indices (m, k) of the rows of `x` nearest to each query, nearest first.

    Runs on a GPU if FAISS finds one and `k` is at most `faiss_gpu.MOST_NEIGHBOURS`. Rows may be in float16,
    of which a GPU makes use.
    """
    if faiss_gpu.available() and k <= faiss_gpu.MOST_NEIGHBOURS:
        return faiss.knn_gpu(faiss_gpu.resources(), queries, x, k, device=faiss_gpu.device())
    return faiss.knn(queries.astype(np.float32, copy=False), x.astype(np.float32, copy=False), k)
