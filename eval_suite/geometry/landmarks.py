"""Prepare an embedding for homology: centre, reduce by PCA, denoise, and choose a few landmarks."""

import math
from typing import NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

from eval_suite.geometry import centring
from isotorus.errors import UserError

Array = NDArray[np.floating]

COMPONENTS = 8
"""Number of principal components that are kept: a surface needs few, and each one adds its noise."""
NEIGHBOURS = 50
"""Number of nearest points whose mean replaces a point in `denoise`."""
MOST = 5_000
"""Largest number of points that are used; if there are more, this many are drawn at random."""
SHARE = 10
"""Number of points for each landmark by default, within `BOUNDS`."""
BOUNDS = (100, 300)
"""Smallest and largest number of landmarks by default: a torus needs the first, the last takes time."""


class Cloud(NamedTuple):
    """A prepared embedding of n points, and its landmarks."""

    reduced: NDArray[np.float64]
    """Centred principal components (n, components) of the distinct rows, at most `MOST` of them."""
    denoised: NDArray[np.float64]
    """The same points (n, components), each replaced by the mean of its nearest ones."""
    landmarks: NDArray[np.int64]
    """Row indices (m,) of the landmarks in `denoised`, in the order of `farthest_points`."""


def distinct(x: Array, seed: int = 0) -> NDArray[np.int64]:
    """Return ascending indices of distinct rows of `x` (n, d), among at most `MOST` rows drawn by `seed`.

    Of equal rows the first is kept. Raises UserError as `centring.centred` does, and for fewer than three
    distinct rows.
    """
    centring.centred(x)
    rows = np.arange(len(x))
    if len(x) > MOST:
        rows = np.sort(np.random.default_rng(seed).choice(len(x), MOST, replace=False))
    _, first = np.unique(x[rows], axis=0, return_index=True)
    if len(first) < 3:
        raise UserError(
            f"{len(first)} distinct samples of {len(rows)} have no shape; add samples, or train again"
        )
    return rows[np.sort(first)]


def reduce(x: Array, components: int = COMPONENTS, seed: int = 0) -> NDArray[np.float64]:
    """Return the leading principal components of the distinct rows of `x` (n, d), centred.

    The shape is (number of rows chosen by `distinct`, at most `components`). Rows are never normalised: that
    would destroy the shape of a torus of revolution. Raises UserError as `distinct` does.
    """
    x = np.asarray(x)
    rows = centring.centred(x[distinct(x, seed)])
    values, vectors = np.linalg.eigh(rows.T @ rows) if rows.shape[1] <= len(rows) else _dual(rows)
    kept = np.argsort(-values)[: min(components, int((values > values.max() * 1e-12).sum()))]
    return rows @ vectors[:, kept]


def denoise(x: NDArray[np.float64], k: int = NEIGHBOURS) -> NDArray[np.float64]:
    """Replace each row of `x` (n, d) by the mean of its nearest rows and itself: `k` rows, at most n / 20."""
    rows, _ = _single(x)
    _, nearest = faiss.knn(rows, rows, _averaged(len(x), k))
    return x[nearest].mean(axis=1)


def farthest_points(x: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Choose `count` rows of `x` (n, d), each the farthest from those before, and return their indices.

    The first is the row farthest from the mean (Gonzalez 1985). Fewer indices are returned if every row
    equals one that is already chosen.
    """
    chosen = np.empty(count, dtype=np.int64)
    gap = np.full(len(x), np.inf)
    outward = np.square(x - x.mean(axis=0)).sum(axis=1)
    following = int(outward.argmax())
    # Means of the same points are equal except for rounding.
    copies = 1e-18 * outward[following]
    for place in range(count):
        if gap[following] <= copies:
            return chosen[:place]
        chosen[place] = following
        gap = np.minimum(gap, np.square(x - x[following]).sum(axis=1))
        following = int(gap.argmax())
    return chosen


def default_count(points: int) -> int:
    """Return the number of landmarks of a cloud of `points` distinct points: a tenth, within `BOUNDS`."""
    few, many = BOUNDS
    return min(max(points // SHARE, few), many, points)


def cloud(reduced: NDArray[np.float64], landmarks: int | None = None) -> Cloud:
    """Denoise the points that `reduce` returned and choose `landmarks` of them, or all if there are fewer.

    If `landmarks` is None, `default_count` chooses how many.
    """
    denoised = denoise(reduced)
    count = default_count(len(denoised)) if landmarks is None else min(landmarks, len(denoised))
    return Cloud(reduced, denoised, farthest_points(denoised, count))


def gap_radius(denoised: NDArray[np.float64]) -> float:
    """Return the radius of the largest gap that chance leaves between the points (n, d) of `denoise`.

    Among n uniform points of a surface, the largest empty disc has the area in which log n points are
    expected. Its radius is √(log n / k) times the median distance to the k-th nearest point; k is the number
    of rows that `denoise` averages. On a curve the largest gap is smaller.
    """
    n = len(denoised)
    k = _averaged(n)
    rows, scale = _single(denoised)
    squares, _ = faiss.knn(rows, rows, min(k + 1, n))
    radius = float(np.sqrt(np.median(np.maximum(squares[:, -1], 0)))) * scale
    return math.sqrt(math.log(n) / k) * radius


def shuffled(reduced: NDArray[np.float64], seed: int, draw: int) -> NDArray[np.float64]:
    """Permute each column of `reduced` (n, components) on its own: null draw number `draw` of `seed`.

    The distribution of each column stays, the dependence between columns is destroyed.
    """
    rng = np.random.default_rng((seed, draw))
    return rng.permuted(reduced, axis=0)


def _averaged(points: int, k: int = NEIGHBOURS) -> int:
    """Return the number of rows that `denoise` averages in a cloud of `points` points."""
    return min(k, max(points // 20, 1))


def _single(x: NDArray[np.float64]) -> tuple[NDArray[np.float32], float]:
    """Return the centred rows `x` (n, d) in float32, divided by a power of two, and that power.

    The largest value becomes 0.5 to 1: FAISS squares distances in float32, where those of very large or small
    values overflow or vanish.
    """
    scale = math.ldexp(1.0, math.frexp(float(np.abs(x).max()))[1])
    return np.ascontiguousarray(x / scale, dtype=np.float32), scale


def _dual(x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return eigenvalues (r,) and eigenvectors (d, r) of xᵀx for `x` (n, d), n < d, from the smaller x xᵀ."""
    values, vectors = np.linalg.eigh(x @ x.T)
    kept = values > values.max() * 1e-12
    return values[kept], x.T @ vectors[:, kept] / np.sqrt(values[kept])
