"""Circular coordinates: an angle for each landmark from each hole that the cloud goes round.

de Silva, Morozov & Vejdemo-Johansson 2011, doi:10.1007/s00454-011-9344-x: a cocycle over Z/p is lifted to
integers and made as smooth as least squares can; its integral is the angle, in turns.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from ripser import ripser
from scipy.sparse import coo_array
from scipy.sparse.linalg import lsqr
from scipy.spatial.distance import pdist, squareform

from eval_suite.geometry import homology

Array = NDArray[np.floating]

PRIMES = (47, 53, 59)
"""Tried in turn: a cocycle over Z/p whose smallest integer lift is none over the integers is rare."""
CELLS = 6
"""Bins of each angle in `joint_coverage`."""


class Coordinates(NamedTuple):
    angles: NDArray[np.float64]
    """(n, c) in [0, 2π), a column for each of the c longest bars that have one."""
    bars: NDArray[np.float64]
    """(c, 2), their births and deaths."""


def circular_coordinates(points: Array, count: int = 2) -> Coordinates:
    """Angles of `points` (n, d) along the `count` longest bars of dimension 1, longest first.

    Each is fixed up to its sign and a turn, and on a torus up to a change of basis. A bar is left out when
    it has no integer cocycle or lives at the enclosing radius; nothing here says that it is significant.
    """
    distances = squareform(pdist(np.asarray(points, dtype=np.float64)))
    radius = homology.enclosing_radius(distances)
    angles: list[NDArray[np.float64]] = []
    bars: list[NDArray[np.float64]] = []
    found = {}
    for place in range(count):
        for prime in PRIMES:
            if prime not in found:
                found[prime] = ripser(
                    distances, maxdim=1, thresh=radius, coeff=prime, distance_matrix=True, do_cocycles=True
                )
            rows = found[prime]["dgms"][1]
            longest = np.argsort(rows[:, 0] - rows[:, 1], kind="stable")
            if place >= len(rows) or not np.isfinite(rows[longest[place], 1]):
                break
            bar = rows[longest[place]]
            angle = _integrate(found[prime]["cocycles"][1][longest[place]], prime, distances, bar)
            if angle is not None:
                angles.append(angle)
                bars.append(bar)
                break
    return Coordinates(np.array(angles).reshape(-1, len(distances)).T, np.array(bars).reshape(-1, 2))


def joint_coverage(angles: Array, cells: int = CELLS) -> float:
    """Share of `cells`² bins that two angles (n, 2) reach together.

    Near 1 on a torus with n well above `cells`². On S¹∨S¹∨S² one angle turns only where the other stands
    still, so that a cross is reached, (2 · cells − 1) / cells².
    """
    if np.shape(angles)[1] != 2:
        raise ValueError(f"joint coverage takes two angles of each point, not {np.shape(angles)}")
    first, second = (np.floor(angles / (2 * np.pi) * cells).astype(int) % cells).T
    return len(np.unique(first * cells + second)) / cells**2


def _integrate(
    cocycle: NDArray[np.int64], prime: int, distances: NDArray[np.float64], bar: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """The angle (n,) of a cocycle, rows (i, j, value), in the middle of its life; None without a lift."""
    n = len(distances)
    winding = np.zeros((n, n), dtype=np.int32)
    i, j, value = cocycle.T
    lifted = np.where(value > prime // 2, value - prime, value)
    winding[i, j], winding[j, i] = lifted, -lifted
    joined = distances <= bar.mean()
    winding[~joined] = 0
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
