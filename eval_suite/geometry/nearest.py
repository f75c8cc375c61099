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

from eval_suite.features import faiss_gpu
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
"""Number of rows whose true neighbours decide which cells are searched; as many other rows measure recall.

If these other rows find a smaller share, more cells are searched until they reach it.
"""


class Neighbours(NamedTuple):
    """The nearest neighbours of n rows."""

    ids: NDArray[np.int64]
    """(n, k) row indices, nearest first; -1 where a neighbour is missing."""
    recall: float
    """Share of the true neighbours that were found; 1.0 for an exact search."""
    precision: str = "float32"
    """Number format of the rows that were searched; "float16" only on a GPU."""


def neighbours(x: Array, k: int, *, recall: float = RECALL) -> Neighbours:
    """Find the `k` rows nearest to each row of `x` (n, d), itself excluded, on a GPU if FAISS finds one.

    Up to `EXACT_BELOW` rows, or for a `recall` of 1, all pairs are compared. For more rows, k-means divides
    them into cells, and a row is compared with its own cell and with near ones whose border is close. The
    limit on this distance is chosen such that these cells contain the share `recall` of the true neighbours
    of some sampled rows. If that takes more than half of the pairs, as for noise of many dimensions, all
    pairs are compared. A GPU searches cells in float16 if the recall allows it, and all pairs always in
    float32. Raises UserError as `prepared` does.
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
    gpu = int(faiss_gpu.available())  # on one GPU: the others belong to other processes
    means = faiss.Kmeans(d, n // CELL, niter=8, max_points_per_centroid=100, seed=0, gpu=gpu)
    means.train(x)
    own = means.assign(x)[1]
    order = np.argsort(own, kind="stable")
    x, own = x[order], own[order]  # now each cell is a slice of the rows
    cells = _Cells(np.asarray(means.centroids), own)

    rows = generator(0).permutation(n)[: 2 * SAMPLE]
    true = _among(x[rows], rows, x, np.arange(n), k)
    # Cells may lose half of the allowed loss; the rest is for rounding and for errors of the sample.
    kept = (1 + recall) / 2
    stored = _stored(x, rows[SAMPLE:], true[SAMPLE:], kept)
    best = _Best(n, k + 1)
    for start, end in cells.spans:
        best.search(stored, np.arange(start, end), start, end)
    reach = best.farthest()
    borders = cells.borders(x[rows], own[rows], np.arange(len(cells.spans))) / reach[rows, None]
    number, part = _enough(
        cells.rank[own[rows, None], own[true]], np.take_along_axis(borders, own[true], axis=1), kept
    )
    searched = (cells.rank[own[rows]] <= number) & (borders <= part)
    if (searched | np.isinf(reach[rows, None])).mean() > 1 / 2:
        return None
    for visitors, (start, end) in zip(cells.visitors(x, reach, number, part), cells.spans, strict=True):
        best.search(stored, visitors, start, end)
    found = _without_self(best.ids, np.arange(n))
    reached = _share(x, rows[SAMPLE:], found[rows[SAMPLE:]], true[SAMPLE:])
    ids = np.empty_like(found)
    ids[order] = order[found]
    return Neighbours(ids, reached, str(stored.dtype))


def _enough(rank: NDArray[np.integer], border: Array, recall: float) -> tuple[int, float]:
    """Return how many near cells a row needs, and how close their borders are, to keep the share `recall`.

    `rank` and `border` (m, k) describe the cells of the true neighbours of m rows; the distance of a border
    is a share of the row's reach. Half of the rows choose both limits. The limits grow until the other half
    keeps the share `recall` too.
    """
    half, kept = len(rank) // 2, (1 + recall) / 2  # each of the two limits may lose half of the allowed loss
    number = float(np.quantile(rank[:half], kept, method="inverted_cdf"))
    part = max(float(np.quantile(border[:half], kept, method="inverted_cdf")), 0.01)
    while ((rank <= number) & (border <= part))[half:].mean() < recall:
        number, part = 1.1 * number + 1, 1.1 * part
    return int(number), part


class _Cells:
    """K-means cells of rows that are sorted by cell, and the borders between them.

    A border is the plane halfway between two centroids.
    """

    def __init__(self, centroids: NDArray[np.float32], own: NDArray[np.integer]) -> None:
        self.centroids = centroids
        ends = np.searchsorted(own, np.arange(len(centroids)), side="right").tolist()
        self.spans = list(zip([0, *ends[:-1]], ends, strict=True))
        """The first row of each cell, and the first one after it."""
        self.squared = (centroids**2).sum(axis=1)
        apart = self.squared[:, None] + self.squared - 2 * centroids @ centroids.T
        self.apart = np.sqrt(np.maximum(apart, np.finfo(np.float32).tiny))
        np.fill_diagonal(self.apart, 0)
        self.near = np.argsort(self.apart, axis=1)
        """The cells (cells, cells) by the distance of their centroid from that of each cell, itself first."""
        self.rank = np.argsort(self.near, axis=1)
        """The place of each cell in each row of `near`."""
        np.fill_diagonal(self.apart, np.inf)

    def borders(self, x: Array, own: NDArray[np.integer], others: NDArray[np.integer]) -> NDArray[np.float32]:
        """Return the distance (m, p) of rows `x` (m, d) of the cells `own` (m,) from p other cells.

        It is the distance to the border with the other cell, behind which all rows of that cell lie. The
        distance to the own cell is 0.
        """
        power = self.squared[others] - 2 * x @ self.centroids[others].T
        power -= (self.squared[own] - 2 * (x * self.centroids[own]).sum(axis=1))[:, None]
        return power / (2 * self.apart[own[:, None], others])

    def visitors(
        self, x: Array, reach: NDArray[np.float32], number: int, part: float
    ) -> list[NDArray[np.integer]]:
        """Return for each cell the rows of other cells that search it.

        A row of `x` (n, d) searches the `number` cells that are nearest to its own, if their border lies
        within the `part` of its `reach` (n,), the distance of its k-th neighbour in its own cell. If its own
        cell has fewer rows, the reach is infinite, and the row searches all cells.
        """
        found: list[list[NDArray[np.integer]]] = [[np.empty(0, np.int32)] for _ in self.spans]
        for own, (start, end) in enumerate(self.spans):
            alone = start < end and np.isinf(reach[start])
            near = self.near[own, 1 : len(self.near) if alone else number + 1]
            borders = self.borders(x[start:end], np.full(end - start, own), near)
            for other, close in zip(near, (borders <= part * reach[start:end, None]).T, strict=True):
                found[other].append((start + np.flatnonzero(close)).astype(np.int32))
        return [np.concatenate(rows) for rows in found]


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
        if _share(x, rows, found, true) >= recall:
            return halves
    return x


def _share(
    x: Array, rows: NDArray[np.integer], found: NDArray[np.integer], true: NDArray[np.integer]
) -> float:
    """Return the share of ids `found` (m, k) that are as near to their row as its neighbours `true` (m, k).

    Distances decide, not ids, because equal rows can stand for each other.
    """
    hits = 0.0
    for row, near, exact in zip(rows, found, true, strict=True):
        limit = ((x[exact] - x[row]) ** 2).sum(axis=1).max()
        hits += (((x[near] - x[row]) ** 2).sum(axis=1) <= limit * (1 + 1e-5)).mean()
    return float(hits / len(rows))


def _among(
    queries: Array,
    query_ids: NDArray[np.integer],
    x: Array,
    ids: NDArray[np.integer],
    k: int,
) -> NDArray[np.int64]:
    """Return the `ids` (m, k) of the rows of `x` nearest to each of m queries, without the query itself."""
    return _without_self(ids[_knn(queries, x, k + 1)[1]], query_ids)


def _without_self(ids: NDArray[np.integer], own: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the `ids` (m, k + 1) of the nearest rows without the id that is `own` (m,), (m, k)."""
    other = ids != own[:, None]
    # If a row has many equal ones, it may be missing among its own neighbours: then drop the last one.
    other[other.all(axis=1), -1] = False
    return ids[other].reshape(len(ids), -1).astype(np.int64, copy=False)


def _knn(queries: Array, x: Array, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return squared distances and indices (m, k) of the rows of `x` nearest to each query, nearest first.

    Runs on a GPU if FAISS finds one and `k` is at most `faiss_gpu.MOST_NEIGHBOURS`. Rows may be in float16,
    of which a GPU makes use.
    """
    if faiss_gpu.available() and k <= faiss_gpu.MOST_NEIGHBOURS:
        return faiss.knn_gpu(faiss_gpu.resources(), queries, x, k, device=faiss_gpu.device())
    return faiss.knn(queries.astype(np.float32, copy=False), x.astype(np.float32, copy=False), k)
