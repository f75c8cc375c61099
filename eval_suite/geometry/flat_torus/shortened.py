"""Shorten the long circle of a torus to the length of the short one, without a change of its topology.

Homology sees the short circle of a torus only if samples are dense against it, and most of them go to the
long one: a torus of ratio 3 with 1,000 samples shows its short circle no better than a square one does with
333. Shortening makes both alike. The angle θ along the long circle follows the first two eigenvectors of
the neighbour graph (Belkin & Niyogi 2003). The map x ↦ (x - f(θ(x)), r cos θ(x), r sin θ(x)) with a smooth
curve f has an inverse, so the shape that it makes has the topology of the shape it is given.
"""

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from scipy.sparse.linalg import eigsh

from eval_suite.geometry import landmarks
from isotorus.randomness import generator

HARMONICS = 4
"""Number of frequencies of the curve that is taken away."""


def shortened(
    reduced: NDArray[np.float64], graph: scipy.sparse.csr_array, ratio: float
) -> NDArray[np.float64]:
    """Return the points `reduced` (n, d) with their long circle shortened by `ratio`.

    `graph` is the neighbour graph of the points, connected. The result has the same rows, centred, in at most
    `landmarks.COMPONENTS` principal components.
    """
    angle = _angle(reduced, graph)
    frequency = np.arange(1, HARMONICS + 1)
    waves = np.concatenate([np.cos(angle[:, None] * frequency), np.sin(angle[:, None] * frequency)], axis=1)
    design = np.column_stack([np.ones(len(angle)), waves])
    curve, *_ = np.linalg.lstsq(design, reduced, rcond=None)
    # A circle of radius R has power R² in each of its two waves.
    radius = np.sqrt(np.square(curve[1:]).sum() / 2) / ratio
    points = np.column_stack([reduced - design @ curve, radius * np.cos(angle), radius * np.sin(angle)])
    points -= points.mean(axis=0)
    _, vectors = np.linalg.eigh(points.T @ points)
    turned: NDArray[np.float64] = points @ vectors[:, ::-1][:, : landmarks.COMPONENTS]
    return turned


def _angle(reduced: NDArray[np.float64], graph: scipy.sparse.csr_array) -> NDArray[np.float64]:
    """Return the angle (n,) of the points `reduced` (n, d) along the longest circle of their neighbour graph.

    Cosine and sine are the linear functions of a point that are nearest to the graph's first two harmonic
    functions. These themselves are means over neighbours: they would draw points together and leave gaps.
    """
    degree = np.asarray(graph.sum(axis=1)).ravel().astype(np.float64)
    scale = scipy.sparse.diags_array(1 / np.sqrt(degree))
    start = generator(0).standard_normal(len(degree))
    values, vectors = eigsh((scale @ graph @ scale).astype(np.float64), k=3, which="LA", v0=start)
    harmonic = vectors[:, np.argsort(-values)[1:]] / np.sqrt(degree)[:, None]
    weights, *_ = np.linalg.lstsq(reduced, harmonic - harmonic.mean(axis=0), rcond=None)
    cosine, sine = (reduced @ weights).T
    angle: NDArray[np.float64] = np.arctan2(sine, cosine)
    return angle
