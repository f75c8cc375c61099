"""Shape of an embedding beyond dimension and rank: uniformity, alignment, hubs, trees, mixed classes.

Features are (n, d) in float32 or float64. What compares all pairs takes at most `ROWS` rows, drawn from a
seed.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist

from eval_suite.geometry import nearest
from isotorus import randomness
from isotorus.errors import UserError
from pretrain.geometry.hyperbolic import gromov_delta

Array = NDArray[np.floating]

ROWS = 4000


class Hubness(NamedTuple):
    """Of the k-occurrence, how often a row is among the `k` nearest of another: mean k."""

    skewness: float
    largest: int
    never: float
    """Share of rows that are nobody's neighbour."""


def uniformity(x: Array, *, t: float = 2.0, seed: int = 0) -> float:
    """log mean_{i<j} exp(-t‖x_i - x_j‖²) of the rows on the unit sphere: 0 at collapse, less when spread.

    Wang & Isola 2020, arXiv:2005.10242. Uniform on a sphere of many dimensions: near -2t.
    """
    x = _unit(x[randomness.rows(len(x), ROWS, seed)])
    return float(np.log(np.exp(-t * pdist(x, "sqeuclidean")).mean()))


def alignment(x: Array) -> float:
    """Mean squared distance of two views of one image on the unit sphere, for `x` (objects, views, d).

    Wang & Isola 2020; over all pairs of views. 0 when views do not matter, 2 when only they do. Raises
    ValueError for fewer than two views.
    """
    if x.ndim != 3 or x.shape[1] < 2:
        raise ValueError(f"alignment takes (objects, views, d) with two or more views, not {x.shape}")
    unit = _unit(x)
    views = x.shape[1]
    # Σ_{i<j} ‖a_i - a_j‖² = v Σ ‖a_i‖² - ‖Σ a_i‖²
    pairs = views * (unit**2).sum(axis=(1, 2)) - (unit.sum(axis=1) ** 2).sum(axis=1)
    return float(pairs.mean() / (views * (views - 1) / 2))


def hubness(x: Array, k: int = 10) -> Hubness:
    """Skewness of the k-occurrence of `x` (n, d), Radovanović et al. 2010, JMLR 11:2487: 0 when all alike.

    Grows with the intrinsic dimension. Raises UserError as `search.neighbours` does.
    """
    ids = nearest.neighbours(x, k).ids
    occurrence = np.bincount(ids.ravel(), minlength=len(ids)).astype(np.float64)
    deviation = occurrence - occurrence.mean()
    std = deviation.std()
    skewness = float((deviation**3).mean() / std**3) if std > 0 else 0.0
    return Hubness(skewness, int(occurrence.max()), float((occurrence == 0).mean()))


def collisions(x: Array, labels: NDArray[np.integer], *, seed: int = 0) -> float:
    """Share of pairs of different classes that are nearer than the median pair of one class.

    ½ when the classes do not show in the distances, 0 when every class keeps to itself; labels below 0
    are left out. Raises UserError for fewer than two classes or no pair within a class.
    """
    labelled = np.flatnonzero(labels >= 0)
    rows = labelled[randomness.rows(len(labelled), ROWS, seed)]
    labels = labels[rows]
    first, second = np.triu_indices(len(rows), 1)
    same = labels[first] == labels[second]
    if same.all() or not same.any():
        raise UserError(
            f"{len(np.unique(labels))} classes among {len(rows)} labelled samples: collisions need two "
            "classes or more, and one with two samples"
        )
    distance = pdist(np.asarray(x[rows], dtype=np.float64))
    return float((distance[~same] < np.median(distance[same])).mean())


def summary(x: Array, *, k: int = 10, seed: int = 0) -> dict[str, Any]:
    """All that needs neither labels nor views, for `x` (n, d), ready for JSON."""
    return {
        "uniformity": uniformity(x, seed=seed),
        "hubness": hubness(x, k)._asdict() | {"k": k},
        "hyperbolicity": gromov_delta(x, seed=seed)._asdict(),
    }


def _unit(x: Array) -> NDArray[np.float64]:
    """Rows on the unit sphere; a zero row stays zero."""
    x = np.asarray(x, dtype=np.float64)
    result: NDArray[np.float64] = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    return result
