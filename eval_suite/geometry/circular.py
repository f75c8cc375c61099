"""Circular coordinates: one angle for each point along each loop of a cloud.

de Silva, Morozov & Vejdemo-Johansson 2011, doi:10.1007/s00454-011-9344-x. A loop gives a cocycle over Z/p,
which assigns a number to every edge. It is lifted to integers, made smooth by least squares, and integrated
along the edges; the integral is the angle in turns.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from ripser import ripser
from scipy.sparse import coo_array
from scipy.sparse.linalg import lsqr
from scipy.spatial.distance import pdist, squareform

from eval_suite.geometry import centring, homology

Array = NDArray[np.floating]

PRIMES = (47, 53, 59)
"""Primes p that are tried in turn, since a few cocycles over Z/p have no lift to the integers for one p."""
CELLS = 6
"""Number of bins of each angle in `joint_coverage`."""


class Coordinates(NamedTuple):
    """Angles of n points along c loops, and the bars of these loops."""

    angles: NDArray[np.float64]
    """(n, c), in radians from 0 to 2π."""
    bars: NDArray[np.float64]
    """(c, 2), birth and death of each loop."""


def circular_coordinates(points: Array, count: int = 2) -> Coordinates:
    """Compute the angles of `points` (n, d) along the loops with the `count` longest bars, longest first.

    Each angle is known only up to its sign and a constant, and the pair of angles of a torus only up to a
    change of basis. Fewer than `count` angles come back when a loop has no integer cocycle or is still there
    at the enclosing radius. Whether a bar is significant is not tested here; see `homology.betti`.
    """
    points = centring.centred(points)
    # ripser computes in float32. A power of two changes no digit, and no angle.
    exponent = int(np.frexp(np.abs(points).max())[1])
    distances = squareform(pdist(np.ldexp(points, -exponent)))
    radius = homology.enclosing_radius(distances)
    angles: list[NDArray[np.float64]] = []
    bars: list[NDArray[np.float64]] = []
    homology_over = {}
    for place in range(count):
        for prime in PRIMES:
            if prime not in homology_over:
                homology_over[prime] = ripser(
                    distances, maxdim=1, thresh=radius, coeff=prime, distance_matrix=True, do_cocycles=True
                )
            rows = homology_over[prime]["dgms"][1]
            longest = np.argsort(rows[:, 0] - rows[:, 1], kind="stable")
            if place >= len(rows) or not np.isfinite(rows[longest[place], 1]):
                break
            bar = rows[longest[place]]
            angle = _integrate(homology_over[prime]["cocycles"][1][longest[place]], prime, distances, bar)
            if angle is not None:
                angles.append(angle)
                bars.append(bar)
                break
    return Coordinates(
        np.array(angles).reshape(-1, len(distances)).T, np.ldexp(np.array(bars).reshape(-1, 2), exponent)
    )


def joint_coverage(angles: Array, cells: int = CELLS) -> float:
    """Return the share of the `cells` × `cells` bins of two angles (n, 2) in radians that hold a point.

    It tells a torus from two circles and a sphere glued at a point (S¹∨S¹∨S²), which has the same Betti
    numbers. It is near 1 on a torus when n is well above `cells`². On the glued space one angle stays
    constant while the other turns, so only a cross of 2 · `cells` - 1 bins is reached. Raises ValueError
    unless there are two angles.
    """
    if np.shape(angles)[1] != 2:
        raise ValueError(f"joint coverage takes two angles of each point, not {np.shape(angles)}")
    first, second = (np.floor(angles / (2 * np.pi) * cells).astype(int) % cells).T
    return len(np.unique(first * cells + second)) / cells**2


def _integrate(
    cocycle: NDArray[np.int64], prime: int, distances: NDArray[np.float64], bar: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """Turn a cocycle over Z/prime into an angle (n,) in radians; None if it has no lift to the integers.

    `cocycle` has rows (i, j, value), one for each edge. The complex is taken halfway between birth and death
    of `bar`, from the points' `distances` (n, n).
    """
    n = len(distances)
    winding = np.zeros((n, n), dtype=np.int32)
    i, j, value = cocycle.T
    lifted = np.where(value > prime // 2, value - prime, value)
    winding[i, j], winding[j, i] = lifted, -lifted
    joined = distances <= bar.mean()
    winding[~joined] = 0
    # The lift is a cocycle over the integers if it sums to 0 around every triangle.
    for vertex in range(n):
        near = np.flatnonzero(joined[vertex])
        around = winding[vertex, near][:, None] + winding[np.ix_(near, near)] - winding[vertex, near]
        if around[joined[np.ix_(near, near)]].any():
            return None
    rows, columns = np.nonzero(np.triu(joined, 1))
    edge = np.arange(len(rows))
    ones = np.ones(len(rows))
    difference = coo_array(
        (np.concatenate([ones, -ones]), (np.concatenate([edge, edge]), np.concatenate([columns, rows]))),
        shape=(len(rows), n),
    ).tocsr()
    turns = lsqr(difference, winding[rows, columns].astype(np.float64), atol=1e-10, btol=1e-10)[0]
    return 2 * np.pi * np.mod(turns, 1)
