"""Uniformity, alignment, hubness, hyperbolicity and class collisions of an embedding.

Features are (n, d) in float32 or float64. Measures that compare all pairs use at most `ROWS` rows, drawn by a
seed.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist

from eval_suite.geometry import centring, nearest
from isotorus import randomness
from isotorus.errors import UserError
from pretrain.geometry.hyperbolic import gromov_delta

Array = NDArray[np.floating]

ROWS = 4000
"""Largest number of rows for measures that compare all pairs."""


class Hubness(NamedTuple):
    """The distribution of the k-occurrence: in how many other rows' `k` nearest a row is. Its mean is k."""

    skewness: float
    """0 for a symmetric distribution, large if few rows are neighbours of very many."""
    largest: int
    """The k-occurrence of the most frequent neighbour."""
    never: float
    """Share of rows that are not a neighbour of any other row."""


def uniformity(x: Array, *, t: float = 2.0, seed: int = 0) -> float:
    """Return log mean_{i<j} exp(-t‖x_i - x_j‖²) of the rows of `x` (n, d), scaled to the unit sphere.

    Wang & Isola 2020, arXiv:2005.10242. It is 0 if all rows are equal and lower if they are spread: near -2t
    for a uniform distribution on a sphere of many dimensions. Raises UserError for a single row.
    """
    if len(x) < 2:
        raise UserError("1 sample has no pairs to compare; give 2 or more")
    x = _unit(x[randomness.rows(len(x), ROWS, seed)])
    return float(np.log(np.exp(-t * pdist(x, "sqeuclidean")).mean()))


def alignment(x: Array) -> float:
    """Return the mean squared distance of two views of one image, for `x` (images, views, d).

    Wang & Isola 2020, arXiv:2005.10242, over all pairs of views, with vectors scaled to the unit sphere. It
    is 0 if all views of an image are equal, and 2 if they are as far apart as unrelated vectors. Raises
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
    """Return the hubness of `x` (n, d), Radovanović et al. 2010, JMLR 11:2487.

    A hub is a row that is among the `k` nearest of very many other rows. The skewness is 0 if all rows are
    neighbours equally often, and grows with the intrinsic dimension. Raises UserError as
    `nearest.neighbours` does.
    """
    ids = nearest.neighbours(x, k).ids
    occurrence = np.bincount(ids.ravel(), minlength=len(ids)).astype(np.float64)
    deviation = occurrence - occurrence.mean()
    std = deviation.std()
    skewness = float((deviation**3).mean() / std**3) if std > 0 else 0.0
    return Hubness(skewness, int(occurrence.max()), float((occurrence == 0).mean()))


def collisions(x: Array, labels: NDArray[np.integer], *, seed: int = 0) -> float:
    """Return the share of pairs from different classes that are nearer than the median pair of one class.

    `x` is (n, d), `labels` (n,); rows with a negative label are left out. It is ½ if distances do not depend
    on the classes, and 0 if the classes are well separated. Raises UserError for fewer than two classes,
    if no class has two rows, and as `centring.centred` does.
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
    distance = pdist(centring.centred(x[rows]))
    return float((distance[~same] < np.median(distance[same])).mean())


def summary(x: Array, *, k: int = 10, seed: int = 0) -> dict[str, Any]:
    """Return uniformity, hubness and hyperbolicity of `x` (n, d), ready for JSON."""
    return {
        "uniformity": uniformity(x, seed=seed),
        "hubness": hubness(x, k)._asdict() | {"k": k},
        "hyperbolicity": gromov_delta(x, seed=seed)._asdict(),
    }


def _unit(x: Array) -> NDArray[np.float64]:
    """Scale the last axis to length 1; a zero vector stays zero."""
    x = centring.checked(x).astype(np.float64)
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    result: NDArray[np.float64] = x / np.where(length > 0, length, 1)
    return result
