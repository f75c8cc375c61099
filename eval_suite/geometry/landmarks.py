"""From an embedding to the few points whose shape is asked for: centre, PCA, denoise, landmarks."""

from typing import NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

from isotorus.errors import UserError

Array = NDArray[np.floating]

COMPONENTS = 8
"""Principal components that are kept: a surface needs few, and each more brings its noise along."""
NEIGHBOURS = 50
"""Points whose mean takes a point's place."""
MOST = 5_000
"""Points that are looked at; of more, as many are drawn."""


class Cloud(NamedTuple):
    reduced: NDArray[np.float64]
    """Principal components (n, components), centred; n is the number of distinct rows, at most `MOST`."""
    denoised: NDArray[np.float64]
    """The same after the k-NN mean."""
    landmarks: NDArray[np.int64]
    """Indices (m,) of farthest points of `denoised`, each prefix farthest points itself."""


def distinct(x: Array, seed: int = 0) -> NDArray[np.int64]:
    """Ascending indices of the rows of `x` (n, d) that are looked at: of copies the first, at most `MOST`.

    Raises UserError for what has no shape: other than two axes, values that are not finite, fewer than
    three distinct rows.
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
            f"the embedding has collapsed: {len(first)} distinct rows have no shape; train it anew"
        )
    return rows[np.sort(first)]


def reduce(x: Array, components: int = COMPONENTS, seed: int = 0) -> NDArray[np.float64]:
    """The leading principal components of the `distinct` rows of `x` (n, d), centred: (n', ≤ components).

    Rows are never normalised: projecting to a sphere would destroy a torus of revolution. Raises UserError
    as `distinct` does.
    """
    x = np.asarray(x)
    rows = x[distinct(x, seed)].astype(np.float64)
    rows -= rows.mean(axis=0)
    values, vectors = np.linalg.eigh(rows.T @ rows) if rows.shape[1] <= len(rows) else _dual(rows)
    kept = np.argsort(-values)[: min(components, int((values > values.max() * 1e-12).sum()))]
    return rows @ vectors[:, kept]


def denoise(x: NDArray[np.float64], k: int = NEIGHBOURS) -> NDArray[np.float64]:
    """Each row of `x` (n, d) replaced by the mean of its `k` nearest, at most n / 20, itself included."""
    k = min(k, max(len(x) // 20, 1))
    rows = np.ascontiguousarray(x, dtype=np.float32)
    index = faiss.IndexFlatL2(x.shape[1])
    index.add(rows)
    _, nearest = index.search(rows, k)
    return x[nearest].mean(axis=1)


def farthest_points(x: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Indices of `count` rows of `x` (n, d), each the farthest from those before; the first lies outermost.

    Stops early when every point is a landmark's copy. Gonzalez 1985.
    """
    chosen = np.empty(count, dtype=np.int64)
    gap = np.full(len(x), np.inf)
    outward = np.square(x - x.mean(axis=0)).sum(axis=1)
    following = int(outward.argmax())
    # Means of the same points are copies, but for rounding.
    copies = 1e-18 * outward[following]
    for place in range(count):
        if gap[following] <= copies:
            return chosen[:place]
        chosen[place] = following
        gap = np.minimum(gap, np.square(x - x[following]).sum(axis=1))
        following = int(gap.argmax())
    return chosen


def cloud(reduced: NDArray[np.float64], landmarks: int) -> Cloud:
    """Denoise what `reduce` gave and choose `landmarks` of its points, or all when they are fewer."""
    denoised = denoise(reduced)
    return Cloud(reduced, denoised, farthest_points(denoised, min(landmarks, len(denoised))))


def shuffled(reduced: NDArray[np.float64], seed: int, draw: int) -> NDArray[np.float64]:
    """Each column of `reduced` permuted by itself: the marginals stay, what joins them goes."""
    rng = np.random.default_rng((seed, draw))
    return rng.permuted(reduced, axis=0)


def _dual(x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Eigenvalues and eigenvectors of xᵀx for wide `x` (n, d), from the smaller x xᵀ."""
    values, vectors = np.linalg.eigh(x @ x.T)
    kept = values > values.max() * 1e-12
    return values[kept], x.T @ vectors[:, kept] / np.sqrt(values[kept])
