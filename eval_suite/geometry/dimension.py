"""Intrinsic dimension of a cloud of points: TwoNN, Levina-Bickel, and one estimate for each point.

The known value is d for points on a d-dimensional manifold. All functions take points (n, d) in float32 or
float64 and count equal rows once. They raise UserError when too few distinct rows remain. They look at the
distances to the nearest neighbours, so noise of that size counts as dimensions. In high dimension they are
too low: 16 to 18 for 5,000 Gaussian points in 20 dimensions.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_suite.geometry import centring, nearest
from isotorus.errors import UserError

Array = NDArray[np.floating]

QUANTILES = (5, 25, 50, 75, 95)
"""Percentiles of the local dimension that `summary` reports."""


def two_nn(x: Array, discard: float = 0.1) -> float:
    """Return the TwoNN dimension of `x` (n, d), Facco et al. 2017, doi:10.1038/s41598-017-11873-y.

    μ is the distance of a point to its second neighbour over that to its first, and F the distribution of μ
    over the points. The dimension is the slope of -log(1 - F(μ)) over log μ: a line through the origin by
    least squares, without the share `discard` of the largest ratios.
    """
    return _two_nn(neighbour_distances(x, 2), discard)


def mle(x: Array, k: int = 20) -> float:
    """Return Levina & Bickel's maximum likelihood dimension (2004) of `x` (n, d) from `k` neighbours.

    It is 1 / mean_i[ 1/(k-1) Σ_{j<k} log(T_k / T_j) ], where T_j is the distance of point i to its j-th
    neighbour. Averaging the inverse estimates of the points is the correction of MacKay & Ghahramani 2005.
    """
    return _mle(neighbour_distances(x, k))


def local(x: Array, k: int = 20) -> NDArray[np.float64]:
    """Return the dimension around each of the m distinct rows of `x` (n, d), shape (m,).

    It is (k-2) / Σ_{j<k} log(T_k / T_j), where T_j is the distance to the j-th neighbour; this is unbiased
    for a single point (Levina & Bickel 2004). Where the dimension is the same everywhere, the estimates
    have a relative standard deviation of 1/√(k-3). Only a wider spread shows a mixture of dimensions.
    """
    return _local(neighbour_distances(x, k))


def summary(x: Array, k: int = 20) -> dict[str, Any]:
    """Return all dimension estimates of `x` (n, d), from one neighbour search and ready for JSON.

    `within_rounding` counts distinct samples so near to another one that their estimates say nothing.
    """
    distances = neighbour_distances(x, k)
    around = np.percentile(_local(distances), QUANTILES)
    return {
        "samples": len(x),
        "distinct": len(distances),
        "within_rounding": within_rounding(x, distances),
        "k": k,
        "two_nn": _two_nn(distances[:, :2], 0.1),
        "mle": _mle(distances),
        "local": {str(q): float(v) for q, v in zip(QUANTILES, around, strict=True)},
    }


def neighbour_distances(x: Array, k: int) -> NDArray[np.float64]:
    """Return the distances (m, k) of the m distinct rows of `x` (n, d) to their `k` nearest rows, ascending.

    All are above 0. They are computed in float64, since those of the search have lost digits in float32.
    Raises UserError for k < 2 and for k or fewer distinct rows.
    """
    if k < 2:
        raise UserError(f"k = {k} neighbours: an estimate of dimension needs two or more")
    x = np.unique(centring.centred(x), axis=0)
    if len(x) <= k:
        raise UserError(
            f"{len(x)} distinct samples: {k} neighbours need at least {k + 1}; add samples or lower k"
        )
    ids = nearest.neighbours(x, k).ids
    distances = np.empty(ids.shape)
    chunk = max(1, 2**24 // (k * x.shape[1]))
    for start in range(0, len(x), chunk):
        rows = slice(start, start + chunk)
        distances[rows] = np.linalg.norm(x[ids[rows]] - x[rows, None], axis=2)
    distances.sort(axis=1)
    return distances


def within_rounding(x: Array, distances: NDArray[np.float64]) -> int:
    """Return how many distinct rows of `x` (n, d) lie within rounding of another one.

    `distances` (m, k) are those of `neighbour_distances`. The ratios of these rows' distances depend on the
    precision that the features were stored in; `centring.rounding` is that of one feature.
    """
    x = centring.checked(x)
    return int((distances[:, 0] <= centring.rounding(x) * np.sqrt(x.shape[1])).sum())


def _two_nn(distances: NDArray[np.float64], discard: float) -> float:
    """Return the TwoNN dimension from the distances (m, 2) of each point to its two nearest neighbours."""
    log_ratio = np.sort(np.log(distances[:, 1] / distances[:, 0]))
    n = len(log_ratio)
    kept = min(int(n * (1 - discard)), n - 1)  # at the largest ratio log(1 - F) is infinite
    survival = -np.log1p(-np.arange(1, kept + 1) / n)
    log_ratio = log_ratio[:kept]
    energy = float(log_ratio @ log_ratio)
    if energy == 0:
        raise UserError("each sample's first two neighbours are equally far: the points have no dimension")
    return float(log_ratio @ survival) / energy


def _local(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the dimension (m,) around each point from its ascending distances (m, k); see `local`."""
    with np.errstate(divide="ignore"):
        return (distances.shape[1] - 2) / _log_ratios(distances).sum(axis=1)


def _mle(distances: NDArray[np.float64]) -> float:
    """Return the maximum likelihood dimension from the ascending distances (m, k) of each point."""
    mean = float(_log_ratios(distances).mean())
    if mean == 0:
        raise UserError("each sample's neighbours are all equally far: the points have no dimension")
    return 1 / mean


def _log_ratios(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log(T_k / T_j) for all j < k, shape (n, k - 1), from ascending distances (n, k)."""
    return np.log(distances[:, -1:] / distances[:, :-1])
