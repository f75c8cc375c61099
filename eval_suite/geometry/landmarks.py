"""Prepare an embedding for homology: centre, reduce by PCA, denoise, and choose a few landmarks."""

from typing import NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

from isotorus.errors import UserError

Array = NDArray[np.floating]

COMPONENTS = 8
"""Number of principal components that are kept: a surface needs few, and each one adds its noise."""
NEIGHBOURS = 50
"""Number of nearest points whose mean replaces a point in `denoise`."""
MOST = 5_000
"""Largest number of points that are used; of more points, this many are drawn at random."""


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

    Of equal rows the first is kept. Raises UserError for an array without two axes, values that are not
    finite, and fewer than three distinct rows.
    """
    if x.ndim != 2 or not x.shape[1]:
        raise UserError(f"the embedding has shape {x.shape}; give (samples, width)")
    finite = np.isfinite(x).all(axis=1)
    if not finite.all():
        raise UserError(
            f"{(~finite).sum()} of {len(x)} embeddings hold NaN or infinity; leave those samples out"
        )
    rows = np.arange(len(x))
    if len(x) > MOST:
        rows = np.sort(np.random.default_rng(seed).choice(len(x), MOST, replace=False))
    _, first = np.unique(x[rows], axis=0, return_index=True)
    if len(first) < 3:
        raise UserError(
            f"the embedding has collapsed: {len(first)} distinct rows have no shape; train it again"
        )
    return rows[np.sort(first)]


def reduce(x: Array, components: int = COMPONENTS, seed: int = 0) -> NDArray[np.float64]:
    """Return the leading principal components of the distinct rows of `x` (n, d), centred.

    The shape is (number of rows chosen by `distinct`, at most `components`). Rows are never normalised: that
    would destroy the shape of a torus of revolution. Raises UserError as `distinct` does.
    """
    x = np.asarray(x)
    rows = x[distinct(x, seed)].astype(np.float64)
    rows -= rows.mean(axis=0)
    values, vectors = np.linalg.eigh(rows.T @ rows) if rows.shape[1] <= len(rows) else _dual(rows)
    kept = np.argsort(-values)[: min(components, int((values > values.max() * 1e-12).sum()))]
    return rows @ vectors[:, kept]


def denoise(x: NDArray[np.float64], k: int = NEIGHBOURS) -> NDArray[np.float64]:
    """Replace each row of `x` (n, d) by the mean of its nearest rows and itself: `k` rows, at most n / 20."""
    k = min(k, max(len(x) // 20, 1))
    rows = np.ascontiguousarray(x, dtype=np.float32)
    _, nearest = faiss.knn(rows, rows, k)
    return x[nearest].mean(axis=1)


def farthest_points(x: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Choose `count` rows of `x` (n, d), each the farthest from those before, and return their indices.

    The first is the row farthest from the mean (Gonzalez 1985). Fewer come back if every row equals one of
    those already chosen.
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


def cloud(reduced: NDArray[np.float64], landmarks: int) -> Cloud:
    """Denoise the points that `reduce` returned and choose `landmarks` of them, or all if there are fewer."""
    denoised = denoise(reduced)
    return Cloud(reduced, denoised, farthest_points(denoised, min(landmarks, len(denoised))))


def shuffled(reduced: NDArray[np.float64], seed: int, draw: int) -> NDArray[np.float64]:
    """Permute each column of `reduced` (n, components) on its own: null draw number `draw` of `seed`.

    The distribution of each column stays, the dependence between columns is destroyed.
    """
    rng = np.random.default_rng((seed, draw))
    return rng.permuted(reduced, axis=0)


def _dual(x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return eigenvalues (r,) and eigenvectors (d, r) of xᵀx for `x` (n, d), n < d, from the smaller x xᵀ."""
    values, vectors = np.linalg.eigh(x @ x.T)
    kept = values > values.max() * 1e-12
    return values[kept], x.T @ vectors[:, kept] / np.sqrt(values[kept])
