"""How many dimensions the points of an embedding fill: TwoNN, Levina-Bickel, and one estimate a point.

All take (n, d) in float32 or float64, count copies of a row once (distance zero carries no scale) and
raise `UserError` where too little is left. They see the scale of the nearest neighbours: noise counts as
dimensions there. And they fall short in high dimension, where a few thousand points have no near ones:
of 5,000 Gaussian points in 20 dimensions they find 16 to 18.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_suite.geometry import nearest
from isotorus.errors import UserError

Array = NDArray[np.floating]

QUANTILES = (5, 25, 50, 75, 95)
"""Percentiles of the local dimension that a summary holds."""


def two_nn(x: Array, discard: float = 0.1) -> float:
    """TwoNN of `x` (n, d): the slope of -log(1 - F(μ)) over log μ, μ the second distance over the first.

    Facco et al. 2017, doi:10.1038/s41598-017-11873-y: a line through the origin by least squares, without
    the largest `discard` of the ratios.
    """
    return _two_nn(neighbour_distances(x, 2), discard)


def mle(x: Array, k: int = 20) -> float:
    """Levina & Bickel's maximum likelihood estimate for `x` (n, d) from `k` neighbours of every point.

    1 / mean_i[ 1/(k-1) Σ_{j<k} log(T_k / T_j) ], T_j the distance to the j-th neighbour: the points' inverse
    estimates are averaged (MacKay & Ghahramani 2005), so that no (k-2)/(k-1) is needed.
    """
    return _mle(neighbour_distances(x, k))


def local(x: Array, k: int = 20) -> NDArray[np.float64]:
    """The dimension around each distinct row of `x` (n, d), (m,): (k-2) / Σ_{j<k} log(T_k / T_j).

    Unbiased for one point (Levina & Bickel 2004). The estimates scatter by a share of 1/√(k-3) where the
    dimension is the same everywhere: only a wider spread speaks of a mixture.
    """
    logs = _log_ratios(neighbour_distances(x, k)).sum(axis=1)
    with np.errstate(divide="ignore"):
        return (k - 2) / logs


def summary(x: Array, k: int = 20) -> dict[str, Any]:
    """Every estimate for `x` (n, d) from one search, ready for JSON."""
    distances = neighbour_distances(x, k)
    with np.errstate(divide="ignore"):
        around = (k - 2) / _log_ratios(distances).sum(axis=1)
    return {
        "samples": len(x),
        "distinct": len(distances),
        "k": k,
        "two_nn": _two_nn(distances[:, :2], 0.1),
        "mle": _mle(distances),
        "local": {str(q): float(v) for q, v in zip(QUANTILES, np.percentile(around, QUANTILES), strict=True)},
    }


def neighbour_distances(x: Array, k: int) -> NDArray[np.float64]:
    """Ascending distances (m, k) of the distinct rows of `x` (n, d) to their `k` nearest, all above 0.

    Recomputed in float64 from differences, since the search's own distances lose digits in float32.
    """
    if k < 2:
        raise UserError(f"k = {k} neighbours: an estimate of dimension needs two or more")
    nearest.prepared(x, 1)
    x = np.unique(np.asarray(x, dtype=np.float64), axis=0)
    if len(x) <= k:
        raise UserError(
            f"{len(x)} distinct samples: {k} neighbours need at least {k + 1}; add samples or lower k"
        )
    x -= x.mean(axis=0)
    ids = nearest.neighbours(x, k).ids
    distances = np.empty(ids.shape)
    chunk = max(1, 2**24 // (k * x.shape[1]))
    for start in range(0, len(x), chunk):
        rows = slice(start, start + chunk)
        distances[rows] = np.linalg.norm(x[ids[rows]] - x[rows, None], axis=2)
    distances.sort(axis=1)
    return distances


def _two_nn(distances: NDArray[np.float64], discard: float) -> float:
    log_ratio = np.sort(np.log(distances[:, 1] / distances[:, 0]))
    n = len(log_ratio)
    kept = min(int(n * (1 - discard)), n - 1)  # at the largest ratio log(1 - F) is infinite
    survival = -np.log1p(-np.arange(1, kept + 1) / n)
    log_ratio = log_ratio[:kept]
    energy = float(log_ratio @ log_ratio)
    if energy == 0:
        raise UserError("each sample's first two neighbours are equally far: the points have no dimension")
    return float(log_ratio @ survival) / energy


def _mle(distances: NDArray[np.float64]) -> float:
    mean = float(_log_ratios(distances).mean())
    if mean == 0:
        raise UserError("each sample's neighbours are all equally far: the points have no dimension")
    return 1 / mean


def _log_ratios(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """log(T_k / T_j) for j < k, (n, k - 1)."""
    return np.log(distances[:, -1:] / distances[:, :-1])
