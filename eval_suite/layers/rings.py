"""Circular features: planes whose points form a ring, and how well an angle is predicted from features.

Engels et al. 2024, "Not all language model features are linear", arXiv:2405.14860.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eval_suite.geometry import centring
from isotorus.randomness import generator

Array = NDArray[np.floating]

PLANES = 4
"""Number of planes that are examined: principal components 1 and 2, 2 and 3, and so on."""
EPSILON = 0.1
"""Half the width of the line in `mixture_index`, relative to the root mean square distance from it."""
TURNS = 60
"""Number of rotations of a plane over which the two indices are minimised or maximised."""
OFFSETS = 121
"""Number of parallel lines for each rotation in `mixture_index`."""


class Ring(NamedTuple):
    """The two indices of a plane of features; a ring has a high separability and a low mixture index."""

    separability: float
    """Mutual information of the coordinates in bits, smallest over rotations; 0 for independent features."""
    mixture: float
    """Largest share of points on a thin line; near 1 for a feature that is absent in most samples."""


def most_ring_like(x: Array) -> Ring:
    """Return the indices of the plane of two successive principal components of `x` (n, d) most like a ring.

    That is the one with the highest separability index. Both are nan if `x` has fewer than two components,
    for rows that are equal up to rounding, and for values that are not finite.
    """
    if not np.isfinite(x).all() or centring.collapsed(x):
        return Ring(float("nan"), float("nan"))
    centred = centring.centred(x)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    usable = int((scale > scale[0] * 1e-6).sum()) if scale[0] > 0 else 0
    if usable < 2:
        return Ring(float("nan"), float("nan"))
    components = left * scale
    planes = [components[:, i : i + 2] for i in range(min(PLANES, usable - 1))]
    separability = [separability_index(plane) for plane in planes]
    best = int(np.argmax(separability))
    return Ring(separability[best], mixture_index(planes[best]))


def separability_index(plane: Array) -> float:
    """Return the mutual information of the coordinates of `plane` (n, 2) in bits, smallest over rotations.

    It is 0 if some rotation makes the coordinates independent, and over 1 for a circle. Computed on a grid of
    about n^⅓ equally filled columns and as many rows; the expected value for independent coordinates is
    subtracted.
    """
    n = len(plane)
    bins = max(2, round(n ** (1 / 3)))
    information = []
    for turn in np.linspace(0, np.pi / 2, TURNS, endpoint=False):
        a, b = _turned(plane, turn)
        cells = np.bincount(_ranks(a, bins) * bins + _ranks(b, bins), minlength=bins**2) / n
        joint = cells.reshape(bins, bins)
        independent = np.outer(joint.sum(1), joint.sum(0))
        full = joint > 0
        bits = float((joint[full] * np.log2(joint[full] / independent[full])).sum())
        information.append(bits - (bins - 1) ** 2 / (2 * n * np.log(2)))
    return max(0.0, min(information))


def mixture_index(plane: Array, epsilon: float = EPSILON) -> float:
    """Return the largest share of points of `plane` (n, 2) that lie on a thin line.

    A point p lies on the line v·p + c = 0 if |v·p + c| < ε √E(v·p + c)². The index is about 0.1 for a
    Gaussian cloud, 0.22 for a circle, and near 1 for a feature that is 0 in most samples.
    """
    best = 0.0
    for turn in np.linspace(0, np.pi, TURNS, endpoint=False):
        along = np.sort(_turned(plane, turn)[0])
        offset = -np.linspace(along[0], along[-1], OFFSETS)
        width = epsilon * np.sqrt(along.var() + (along.mean() + offset) ** 2)
        inside = np.searchsorted(along, -offset + width) - np.searchsorted(along, -offset - width, "right")
        best = max(best, float(inside.max()) / len(along))
    return best


def angle_error(x: Array, angles: Array, *, seed: int = 0) -> float:
    """Return the mean error in degrees of angles (n,) that are predicted from `x` (n, d); 90 is chance.

    `angles` are in radians. Ridge regression of their cosine and sine is fitted on each half of the samples
    and tested on the other one. The penalty is chosen by leave-one-out on the half that it is fitted on.
    """
    from sklearn.linear_model import RidgeCV

    random = generator(seed)
    order = random.permutation(len(x))
    halves = order[: len(x) // 2], order[len(x) // 2 :]
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    errors = []
    for fitted, tested in (halves, halves[::-1]):
        mean, std = x[fitted].mean(axis=0), x[fitted].std(axis=0)
        scaled = (x - mean) / np.where(std > 0, std, 1)
        ridge = RidgeCV(alphas=np.logspace(-3, 5, 17)).fit(scaled[fitted], circle[fitted])
        predicted = ridge.predict(scaled[tested])
        difference = angles[tested] - np.arctan2(predicted[:, 1], predicted[:, 0])
        errors.append(np.abs(np.angle(np.exp(1j * difference))))
    return float(np.rad2deg(np.concatenate(errors).mean()))


def _turned(plane: Array, turn: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both coordinates (n,) of a plane (n, 2) after a rotation by `turn` radians."""
    cos, sin = np.cos(turn), np.sin(turn)
    return plane[:, 0] * cos + plane[:, 1] * sin, plane[:, 1] * cos - plane[:, 0] * sin


def _ranks(x: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    """Return the bin (n,), 0 to `bins` - 1, of each of n values; all bins hold equally many values."""
    result: NDArray[np.int64] = x.argsort(kind="stable").argsort(kind="stable") * bins // len(x)
    return result
