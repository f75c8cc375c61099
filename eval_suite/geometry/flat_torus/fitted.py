"""The flat torus whose spectrum fits that of a neighbour graph best, and the ratio of its two circles.

The torus of two circles with radii R₁ ≥ R₂ has the eigenvalues a² + ρb² for integers a and b, not both 0,
times a scale; ρ = (R₁/R₂)². A torus of another lattice has a² + σab + ρb² with 0 ≤ σ ≤ 1 ≤ ρ (Gauss's
reduced form): σ = 0 is a rectangle, σ = ρ = 1 the hexagonal torus. Eigenvalues (a, b) and (-a, -b) are
equal, so bands have an even number of members.
"""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from isotorus.randomness import generator

Array = NDArray[np.floating]

COUNT = 16
"""Number of eigenvalues that are fitted, because a torus of ratio 3 is like a circle in the first six."""
FEWEST = 4
"""Smallest number of eigenvalues for a fit."""
MOST_RATIO = 4.0
"""Largest ratio of the circles that a fit can have."""
MODES = 28
"""Number of eigenvalues of the torus that sampling mixes with each other."""
DRAWS = 16
"""Number of random mixtures whose mean is the expected spectrum of a sample."""
STEPS = 80
"""Number of ratios at which `expected` is computed; between them its logarithms are interpolated."""
SKEWS = tuple(tenth / 10 for tenth in range(11))
"""Values of σ that `lattice` tries."""


class Fit(NamedTuple):
    """A flat torus fitted to eigenvalues."""

    ratio: float
    """Radius of the longer circle over that of the shorter one, 1 or more; √ρ for any lattice."""
    skew: float
    """σ of the lattice: 0 for a rectangle, 1 at most."""
    scale: float
    """Eigenvalue of the longer circle's first mode, a = 1 and b = 0."""
    error: float
    """Root mean square of the difference of measured and fitted logarithms."""
    eigenvalues: list[float]
    """The fitted eigenvalues, as many as were measured."""

    @property
    def angle(self) -> float:
        """Angle of the two shortest vectors of the lattice in degrees: 90 for a rectangle, 60 at least."""
        return float(np.degrees(np.arccos(self.skew / (2 * self.ratio))))

    def to_json(self) -> dict[str, Any]:
        """Return all fields and the angle for JSON."""
        return self._asdict() | {"angle": self.angle}


def rectangle(eigenvalues: Array | list[float], samples: int | None = None) -> Fit:
    """Fit the ratio of two circles and the scale to ascending `eigenvalues` without zero modes, 16 at most.

    Sampling splits eigenvalues that are equal on the torus. `samples` is the number of points; the fit uses
    the eigenvalues that are expected for it (`expected`), or with None those of the torus itself. Fewer than
    sixteen eigenvalues are less certain: with ten, a torus of ratio 3 looks nearly like a circle. Raises
    ValueError for fewer than `FEWEST`.
    """
    return _fitted(eigenvalues, samples, 0.0)


def lattice(eigenvalues: Array | list[float], samples: int | None = None) -> Fit:
    """Fit a flat torus of any lattice, as `rectangle` does; its skew is one of `SKEWS`."""
    return min((_fitted(eigenvalues, samples, skew) for skew in SKEWS), key=lambda fit: fit.error)


def expected(ratio: float, skew: float = 0.0, samples: int | None = None) -> NDArray[np.float64]:
    """Return the expected logarithms (16,) of eigenvalues that `samples` uniform points of a torus show.

    The products of gradients of two modes with eigenvalues λ and μ have a mean over n points that differs
    from the integral by about √(λμ / n). So the eigenvalues of a sample are those of D^½ (1 + G/√n) D^½,
    where D holds the eigenvalues of the torus and G is a random symmetric matrix with entries of variance
    1. It splits bands in proportion to 1/√n. The result is the mean over `DRAWS` such matrices, which do
    not depend on ratio or `samples`.
    """
    exact = np.sort(_form(ratio, skew))[:MODES]
    if samples is None:
        return np.log(exact[:COUNT])
    root = np.sqrt(exact)
    mixed = np.diag(exact) + root[:, None] * _noise() * root / np.sqrt(samples)
    values = np.maximum(np.linalg.eigvalsh(mixed)[:, :COUNT], 1e-3)
    return np.log(values).mean(axis=0)


def _fitted(eigenvalues: Array | list[float], samples: int | None, skew: float) -> Fit:
    """Return the best torus of a lattice with this skew."""
    measured = np.log(np.maximum(np.asarray(eigenvalues, dtype=np.float64)[:COUNT], 1e-12))
    count = len(measured)
    if count < FEWEST:
        raise ValueError(f"a flat torus is fitted to {FEWEST} eigenvalues or more, not {count}")
    grid = np.linspace(0, np.log(MOST_RATIO), STEPS)
    table = _table(skew, samples)[:, :count]

    def shape(log_ratio: float) -> NDArray[np.float64]:
        if samples is None:
            return expected(np.exp(log_ratio), skew)[:count]
        place = min(int(np.searchsorted(grid, log_ratio, side="right")) - 1, STEPS - 2)
        share = (log_ratio - grid[place]) / (grid[place + 1] - grid[place])
        between: NDArray[np.float64] = (1 - share) * table[place] + share * table[place + 1]
        return between

    def error(log_ratio: float) -> float:
        return float((measured - shape(log_ratio)).std())

    best = int((measured - table).std(axis=1).argmin())
    near = grid[max(best - 1, 0)], grid[min(best + 1, STEPS - 1)]
    found = minimize_scalar(error, bounds=near, method="bounded", options={"xatol": 1e-9})
    # The bounded search never reaches its ends, and a square torus lies at one.
    log_ratio = min((float(found.x), float(grid[best])), key=error)
    logarithms = shape(log_ratio)
    offset = float((measured - logarithms).mean())
    return Fit(
        ratio=float(np.exp(log_ratio)),
        skew=float(skew),
        scale=float(np.exp(offset)),
        error=error(log_ratio),
        eigenvalues=np.exp(logarithms + offset).tolist(),
    )


def _form(ratio: float, skew: float) -> NDArray[np.float64]:
    """Return a² + σab + ρb² for all small integers a and b but a = b = 0."""
    # At the largest ratio the sixteenth eigenvalue has |a| = 6, and the 28th has |a| = 8.
    a, b = np.mgrid[-9:10, -9:10].reshape(2, -1)
    values: NDArray[np.float64] = a**2 + skew * a * b + ratio**2 * b**2
    return values[(a != 0) | (b != 0)]


@cache
def _table(skew: float, samples: int | None) -> NDArray[np.float64]:
    """Return `expected` (STEPS, 16) for ratios from 1 to `MOST_RATIO` in equal steps of their logarithm."""
    return np.array(
        [expected(ratio, skew, samples) for ratio in np.exp(np.linspace(0, np.log(MOST_RATIO), STEPS))]
    )


@cache
def _noise() -> NDArray[np.float64]:
    """Return the random symmetric matrices G (DRAWS, MODES, MODES) of `expected`."""
    entries = generator(0).standard_normal((DRAWS, MODES, MODES))
    return (entries + entries.transpose(0, 2, 1)) / np.sqrt(2)
