"""Nearest neighbours of every row of an embedding among the other rows, by Euclidean distance (FAISS)."""

from functools import cache
from typing import Any, NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

from isotorus.errors import UserError
from isotorus.randomness import generator

Array = NDArray[np.floating]

RECALL = 0.999
"""Share of true neighbours that a search of many rows may settle for. Those missed lie across the borders of
cells, where they count double: at 0.984, a torus of 50,000 points lost 5 % of its gap."""
EXACT_BELOW = 10_000
"""Rows up to which every search compares all pairs."""
CELL = 400
"""Rows of a k-means cell: enough that BLAS runs at speed, few enough that cells are small beside the data."""
SAMPLE = 500
"""Rows whose true neighbours decide how far an approximate search looks; as many others give its recall."""
GPU_NEIGHBOURS = 2048
"""Most that FAISS finds on a GPU."""


class Neighbours(NamedTuple):
    """`ids` (n, k), nearest first, -1 for none; `recall`: share of the true ones found, 1.0 when exact."""

    ids: NDArray[np.int64]
    recall: float


def neighbours(x: Array, k: int, *, recall: float = RECALL) -> Neighbours:
    """The `k` rows nearest to each row of `x` (n, d), itself excluded.

    Up to `EXACT_BELOW` rows, or for a `recall` of 1, by comparing all pairs. Beyond, rows are parted by
    k-means, and a cell's rows are compared with those of its nearest cells only: as many of them as hold
    `recall` of the true neighbours of a sample of rows; with all rows where more than half of the cells are
    needed, as for high-dimensional noise. On GPUs where FAISS finds one. Raises UserError as `prepared` does.
    """
    x = prepared(x, k)
    if recall < 1 and len(x) > EXACT_BELOW:
        found = _by_cells(x, k, recall)
        if found is not None:
            return found
    return Neighbours(_among(x, np.arange(len(x)), x, np.arange(len(x)), k), 1.0)


def prepared(x: Array, k: int) -> NDArray[np.float32]:
    """`x` (n, d) checked, centred and scaled in float64, as contiguous float32.

    Distances are differences of squared norms, which lose their digits in float32 when the cloud lies far
    from the origin; squares of very small or large values would leave its range.
    """
    if x.ndim != 2:
        raise UserError(f"features of shape {x.shape}: expected (samples, dimensions)")
    n = len(x)
    if not 1 <= k < n:
        raise UserError(f"k = {k} neighbours of {n} samples: k lies in 1 … n - 1; lower k or add samples")
    x = x.astype(np.float64)
    if not np.isfinite(x).all():
        bad = int((~np.isfinite(x)).any(axis=1).sum())
        raise UserError(f"{bad} of {n} samples have NaN or infinite features; leave them out")
    x -= x.mean(axis=0)
    scale = np.abs(x).max()
    if scale == 0:
        raise UserError(f"all {n} samples have the same features: there are no nearest neighbours")
    return np.ascontiguousarray(x / scale, dtype=np.float32)


def _by_cells(x: NDArray[np.float32], k: int, recall: float) -> Neighbours | None:
    """None where it would save nothing."""
    n, d = x.shape
    gpu = faiss.get_num_gpus() > 0
    means = faiss.Kmeans(d, n // CELL, niter=8, max_points_per_centroid=100, seed=0, gpu=gpu)
    means.train(x)
    cell = means.assign(x)[1]
    centroids = np.asarray(means.centroids)
    by_distance = _knn(centroids, centroids, n // CELL)[1]

    rows = generator(0).permutation(n)[: 2 * SAMPLE]
    true = _among(x[rows], rows, x, np.arange(n), k)
    # How far down its row's list of cells each true neighbour's cell stands.
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
    """(m, k) of `ids`: the rows of `x` nearest to each query, less the one of the query's own id."""
    found = ids[_knn(queries, x, k + 1)[1]]
    other = found != query_ids[:, None]
    other[other.all(axis=1), -1] = False  # copies of it have crowded the query itself out: drop the last
    return found[other].reshape(len(queries), k)


def _knn(
    queries: NDArray[np.float32], x: NDArray[np.float32], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Squared distances and places in `x` of the `k` nearest, on a GPU where it takes as many neighbours."""
    if faiss.get_num_gpus() and k <= GPU_NEIGHBOURS:
        return faiss.knn_gpu(_gpu_resources(), queries, x, k)
    return faiss.knn(queries, x, k)


@cache
def _gpu_resources() -> Any:
    """Made once: they hold more than a GiB of the GPU's memory."""
    return faiss.StandardGpuResources()
