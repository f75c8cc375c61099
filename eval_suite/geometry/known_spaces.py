"""Samples of spaces whose shape is known, with noise; verdicts are calibrated on them.

Every circle and sphere has radius 1; in a rectangular torus the smaller circle has radius 1. Noise is the
standard deviation of each ambient coordinate, so in R⁷⁶⁸ noise 0.15 moves a point by √768 · 0.15 ≈ 4.2 radii.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
Sampler = Callable[[int, np.random.Generator], Points]


def sample(
    name: str, n: int, ambient: int = 0, noise: float = 0.0, seed: int | tuple[int, ...] = 0
) -> Points:
    """Draw `n` points (n, d) of the space `name`, a key of `SPACES`, in a random position in R^`ambient`.

    d is `ambient` or, if that is larger, the dimension that the space needs. The Gaussian fills R^`ambient`,
    since it is isotropic in no larger space; without `ambient` d is 64. Gaussian noise of standard deviation
    `noise` is added to each coordinate.
    """
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(n, ambient)) if name == "Gaussian" and ambient else SPACES[name](n, rng)
    ambient = max(ambient, points.shape[1])
    frame, _ = np.linalg.qr(rng.normal(size=(ambient, points.shape[1])))
    return points @ frame.T + noise * rng.normal(size=(n, ambient))


def flat_torus(n: int, rng: np.random.Generator) -> Points:
    """Draw uniform points of the flat torus S¹ × S¹ in R⁴."""
    return _angles(n, 2, rng)


def rectangular_torus(n: int, rng: np.random.Generator, ratio: float) -> Points:
    """Draw uniform points of the product of two circles with radii `ratio` and 1, in R⁴."""
    points = flat_torus(n, rng)
    points[:, :2] *= ratio
    return points


def hexagonal_torus(n: int, rng: np.random.Generator) -> Points:
    """Draw uniform points of the flat torus with a hexagonal lattice, in R⁶: it is no product of circles."""
    first, second = rng.uniform(0, 2 * np.pi, (2, n))
    # Three waves whose wave vectors sum to 0 and have angles of 120° between them keep all lengths.
    angles = np.stack([first, second, -first - second], axis=1)
    return np.sqrt(2 / 3) * np.concatenate([np.cos(angles), np.sin(angles)], axis=1)


def torus3(n: int, rng: np.random.Generator) -> Points:
    """Draw uniform points of the three-dimensional flat torus T³ in R⁶."""
    return _angles(n, 3, rng)


def two_tori(n: int, rng: np.random.Generator) -> Points:
    """Draw points of two flat tori in R⁴ whose centres are 5 apart, which leaves a gap of 3."""
    points = _angles(n, 2, rng)
    points[: n // 2, 0] += 5
    return points


def donut(n: int, rng: np.random.Generator) -> Points:
    """Draw points, uniform by area, of the torus of revolution in R³ with radii R = 1 and r = ½."""
    u, v = rng.uniform(0, 2 * np.pi, (2, 4 * n))
    # Rejection sampling: the area element is proportional to R + r cos v.
    kept = np.flatnonzero(rng.uniform(0, 1.5, 4 * n) < 1 + 0.5 * np.cos(v))[:n]
    u, v = u[kept], v[kept]
    ring = 1 + 0.5 * np.cos(v)
    return np.stack([ring * np.cos(u), ring * np.sin(u), 0.5 * np.sin(v)], axis=1)


def circle(n: int, rng: np.random.Generator) -> Points:
    """Draw uniform points of the unit circle in R²."""
    return _angles(n, 1, rng)


def cylinder(n: int, rng: np.random.Generator) -> Points:
    """Draw uniform points of the cylinder of height 2 over the unit circle, in R³."""
    return np.column_stack([circle(n, rng), rng.uniform(-1, 1, n)])


def annulus(n: int, rng: np.random.Generator) -> Points:
    """Draw uniform points of the plane between the circles of radii ¾ and 1½."""
    return circle(n, rng) * 1.5 * np.sqrt(rng.uniform(0.25, 1, n))[:, None]


def moebius_strip(n: int, rng: np.random.Generator) -> Points:
    """Draw points of a Möbius strip of width 1.6 around the unit circle, in R⁴."""
    u, across = rng.uniform(0, 2 * np.pi, n), rng.uniform(-0.8, 0.8, n)
    return np.stack([np.cos(u), np.sin(u), across * np.cos(u / 2), across * np.sin(u / 2)], axis=1)


def figure_eight(n: int, rng: np.random.Generator) -> Points:
    """Draw points of two unit circles that share one point, S¹ ∨ S¹, each in its own plane of R⁴."""
    points = np.zeros((n, 4))
    loops = _angles(n, 1, rng)
    points[: n // 2, :2] = [1, 0] - loops[: n // 2]
    points[n // 2 :, 2:] = [1, 0] - loops[n // 2 :]
    return points


def sphere(n: int, rng: np.random.Generator) -> Points:
    """Draw uniform points of the unit sphere S² in R³."""
    points = rng.normal(size=(n, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def klein_bottle(n: int, rng: np.random.Generator) -> Points:
    """Draw points of the Klein bottle in R⁵: the torus modulo (u, v) ~ (u + π, −v), uniform in u and v."""
    u, v = rng.uniform(0, 2 * np.pi, (2, n))
    # These functions of (u, v) take the same value at identified points; the first two make a unit circle.
    return np.stack(
        [np.cos(2 * u), np.sin(2 * u), np.sqrt(2) * np.cos(v), np.sin(v) * np.cos(u), np.sin(v) * np.sin(u)],
        axis=1,
    )


def wedge(n: int, rng: np.random.Generator) -> Points:
    """Draw points of two circles and a sphere glued at one point, S¹ ∨ S¹ ∨ S², in R⁷; half of them on S².

    Its Betti numbers (1, 2, 1) are those of a torus over every field, but it is not a torus.
    """
    points = np.zeros((n, 7))
    quarter = n // 4
    points[2 * quarter :, :3] = sphere(n - 2 * quarter, rng)
    loops = _angles(2 * quarter, 1, rng)
    # Both circles start at the sphere's north pole, each in its own plane.
    points[: 2 * quarter, 2] = 1
    points[:quarter, 3:5] = [1, 0] - loops[:quarter]
    points[quarter : 2 * quarter, 5:7] = [1, 0] - loops[quarter:]
    return points


def gaussian(n: int, rng: np.random.Generator) -> Points:
    """Draw points of the Gaussian distribution N(0, I) in R⁶⁴."""
    return rng.normal(size=(n, 64))


def cube(n: int, rng: np.random.Generator) -> Points:
    """Draw uniform points of the cube [−1, 1]⁴."""
    return rng.uniform(-1, 1, size=(n, 4))


def clusters(n: int, rng: np.random.Generator) -> Points:
    """Draw points of ten Gaussians in R⁸ with standard deviation 0.2 around centres from N(0, I)."""
    centres = rng.normal(size=(10, 8))
    return centres[rng.integers(10, size=n)] + 0.2 * rng.normal(size=(n, 8))


def _angles(n: int, circles: int, rng: np.random.Generator) -> Points:
    """Draw uniform points of a product of unit circles, (n, 2 · circles): cosine and sine of each angle."""
    theta = rng.uniform(0, 2 * np.pi, (n, circles))
    return np.stack([np.cos(theta), np.sin(theta)], axis=2).reshape(n, 2 * circles)


SPACES: dict[str, Sampler] = {
    "flat torus": flat_torus,
    "donut": donut,
    "circle": circle,
    "sphere": sphere,
    "Klein bottle": klein_bottle,
    "S¹∨S¹∨S²": wedge,
    "T³": torus3,
    "two tori": two_tori,
    "Gaussian": gaussian,
    "uniform cube": cube,
    "clusters": clusters,
    "flat torus 3:2": partial(rectangular_torus, ratio=1.5),
    "flat torus 2:1": partial(rectangular_torus, ratio=2.0),
    "flat torus 3:1": partial(rectangular_torus, ratio=3.0),
    "hexagonal torus": hexagonal_torus,
    "cylinder": cylinder,
    "annulus": annulus,
    "Möbius strip": moebius_strip,
    "figure eight": figure_eight,
}
"""The sampler of each space, by the name that the calibration table in docs/verdict.md uses."""
