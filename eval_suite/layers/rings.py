"""Circles among features: planes that do not come apart into two lines, and angles that can be read off.

Engels et al. 2024, "Not all language model features are linear", arXiv:2405.14860.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from isotorus.randomness import generator

Array = NDArray[np.floating]

PLANES = 4
"""Pairs of successive principal components that are looked at: 1 and 2, 2 and 3, …"""
EPSILON = 0.1
TURNS, OFFSETS = 60, 121


class Ring(NamedTuple):
    """Of one plane of features."""

    separability: float
    """Bits that one coordinate says of the other however the plane is turned; 0 where some turn makes two
    independent features of it."""
    mixture: float
    """Largest share of points on a thin line: near 1 where a feature is mostly absent, small on a ring."""


def most_ring_like(x: Array) -> Ring:
    """Of the planes of successive principal components of `x` (n, d) the least separable; nan for none."""
    x = np.asarray(x, dtype=np.float64)
    centred = x - x.mean(axis=0)
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
    """min over turns of the mutual information in bits of the two coordinates of `plane` (n, 2).

    On a grid of about n^⅓ equally filled columns and rows, less what independent coordinates show by chance.
    """
    n = len(plane)
    bins = max(2, round(n ** (1 / 3)))
    found = []
    for turn in np.linspace(0, np.pi / 2, TURNS, endpoint=False):
        a, b = _turned(plane, turn)
        cells = np.bincount(_ranks(a, bins) * bins + _ranks(b, bins), minlength=bins**2) / n
        joint = cells.reshape(bins, bins)
        independent = np.outer(joint.sum(1), joint.sum(0))
        full = joint > 0
        information = float((joint[full] * np.log2(joint[full] / independent[full])).sum())
        found.append(information - (bins - 1) ** 2 / (2 * n * np.log(2)))
    return max(0.0, min(found))


def mixture_index(plane: Array, epsilon: float = EPSILON) -> float:
    """max over lines of the share of points of `plane` (n, 2) with |v·f + c| < ε √E(v·f + c)²."""
    best = 0.0
    for turn in np.linspace(0, np.pi, TURNS, endpoint=False):
        along = np.sort(_turned(plane, turn)[0])
        offset = -np.linspace(along[0], along[-1], OFFSETS)
        width = epsilon * np.sqrt(along.var() + (along.mean() + offset) ** 2)
        inside = np.searchsorted(along, -offset + width) - np.searchsorted(along, -offset - width, "right")
        best = max(best, float(inside.max()) / len(along))
    return best


def angle_error(x: Array, angles: Array, *, seed: int = 0) -> float:
    """Mean error in degrees of angles (n,) in radians read off `x` (n, d): 90 by chance.

    Ridge regression of cosine and sine on one half of the samples, tried on the other, both ways round; the
    penalty is chosen by leave-one-out on the half that it is fitted on.
    """
    from sklearn.linear_model import RidgeCV

    random = generator(seed)
    order = random.permutation(len(x))
    halves = order[: len(x) // 2], order[len(x) // 2 :]
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    errors = []
    for fitted, tried in (halves, halves[::-1]):
        mean, std = x[fitted].mean(axis=0), x[fitted].std(axis=0)
        scaled = (x - mean) / np.where(std > 0, std, 1)
        read = (
            RidgeCV(alphas=np.logspace(-3, 5, 17)).fit(scaled[fitted], circle[fitted]).predict(scaled[tried])
        )
        apart = angles[tried] - np.arctan2(read[:, 1], read[:, 0])
        errors.append(np.abs(np.angle(np.exp(1j * apart))))
    return float(np.rad2deg(np.concatenate(errors).mean()))


def _turned(plane: Array, turn: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    cos, sin = np.cos(turn), np.sin(turn)
    return plane[:, 0] * cos + plane[:, 1] * sin, plane[:, 1] * cos - plane[:, 0] * sin


def _ranks(x: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    """Which of `bins` equally filled columns each value falls in."""
    result: NDArray[np.int64] = x.argsort(kind="stable").argsort(kind="stable") * bins // len(x)
    return result
