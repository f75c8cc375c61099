"""Samples of spaces whose shape is known, isometrically embedded with noise: what verdicts are calibrated on.

Every circle and sphere has radius 1, so noise is relative to that: it is the standard deviation of *each*
ambient coordinate, and in R⁷⁶⁸ noise .15 moves a point by √768 · .15 ≈ 4.2 radii.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
Sampler = Callable[[int, np.random.Generator], Points]


def sample(
    name: str, n: int, ambient: int = 0, noise: float = 0.0, seed: int | tuple[int, ...] = 0
) -> Points:
    """`n` points of the space `name` (a key of `SPACES`) in R^`ambient`, noise added to each coordinate.

    The frame is random; spaces that need more dimensions than `ambient` get those they need, (n, d).
    """
    rng = np.random.default_rng(seed)
    points = SPACES[name](n, rng)
    ambient = max(ambient, points.shape[1])
    frame, _ = np.linalg.qr(rng.normal(size=(ambient, points.shape[1])))
    return points @ frame.T + noise * rng.normal(size=(n, ambient))


def flat_torus(n: int, rng: np.random.Generator) -> Points:
    """S¹ × S¹ in R⁴, uniform."""
    return _angles(n, 2, rng)


def torus3(n: int, rng: np.random.Generator) -> Points:
    """T³ in R⁶, uniform."""
    return _angles(n, 3, rng)


def two_tori(n: int, rng: np.random.Generator) -> Points:
    """Two flat tori in R⁴ whose centres lie 5 apart, so 3 to the nearest points."""
    points = _angles(n, 2, rng)
    points[: n // 2, 0] += 5
    return points


def donut(n: int, rng: np.random.Generator) -> Points:
    """The torus of revolution in R³ with R = 1, r = ½, uniform by area."""
    u, v = rng.uniform(0, 2 * np.pi, (2, 4 * n))
    # The area element is R + r cos v.
    kept = np.flatnonzero(rng.uniform(0, 1.5, 4 * n) < 1 + 0.5 * np.cos(v))[:n]
    u, v = u[kept], v[kept]
    ring = 1 + 0.5 * np.cos(v)
    return np.stack([ring * np.cos(u), ring * np.sin(u), 0.5 * np.sin(v)], axis=1)


def circle(n: int, rng: np.random.Generator) -> Points:
    return _angles(n, 1, rng)


def sphere(n: int, rng: np.random.Generator) -> Points:
    """S² in R³, uniform."""
    points = rng.normal(size=(n, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def klein_bottle(n: int, rng: np.random.Generator) -> Points:
    """The torus modulo (u, v) ~ (u + π, −v), in R⁵; uniform in the angles u and v."""
    u, v = rng.uniform(0, 2 * np.pi, (2, n))
    # Functions of (u, v) that the identification leaves alone; the first pair is a circle of radius 1.
    return np.stack(
        [np.cos(2 * u), np.sin(2 * u), np.sqrt(2) * np.cos(v), np.sin(v) * np.cos(u), np.sin(v) * np.sin(u)],
        axis=1,
    )


def wedge(n: int, rng: np.random.Generator) -> Points:
    """S¹ ∨ S¹ ∨ S² in R⁷: Betti numbers (1, 2, 1) over every field, and no torus. Half the points on S²."""
    points = np.zeros((n, 7))
    quarter = n // 4
    points[2 * quarter :, :3] = sphere(n - 2 * quarter, rng)
    loops = _angles(2 * quarter, 1, rng)
    # Both circles leave the sphere's north pole, each in a plane of its own.
    points[: 2 * quarter, 2] = 1
    points[:quarter, 3:5] = [1, 0] - loops[:quarter]
    points[quarter : 2 * quarter, 5:7] = [1, 0] - loops[quarter:]
    return points


def gaussian(n: int, rng: np.random.Generator) -> Points:
    """N(0, I) in R⁶⁴."""
    return rng.normal(size=(n, 64))


def cube(n: int, rng: np.random.Generator) -> Points:
    """[−1, 1]⁴, uniform."""
    return rng.uniform(-1, 1, size=(n, 4))


def clusters(n: int, rng: np.random.Generator) -> Points:
    """Ten Gaussians in R⁸, of standard deviation .2 around centres from N(0, I)."""
    centres = rng.normal(size=(10, 8))
    return centres[rng.integers(10, size=n)] + 0.2 * rng.normal(size=(n, 8))


def _angles(n: int, circles: int, rng: np.random.Generator) -> Points:
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
}
