"""How many pairs of images have nearly the same angles by chance, so that it is known what a pair says."""

import math

import numpy as np
from numpy.typing import NDArray

from isotorus.randomness import generator

STREAM = 0x0C4A9
"""Stream of the random numbers that shuffle angles."""
MOST_ANGLES = 256
"""Largest number of angles that is advised."""


def shuffled(angles: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Return angles (n, m) with each column in a random order of its own.

    Each angle keeps its distribution, and what two rows have in common is chance. A single angle is not
    changed by that: all that it says is its distribution.
    """
    random = generator(seed, STREAM)
    return np.stack([random.permutation(column) for column in angles.T], axis=1)


def expected(images: int, angles: int, degrees: float) -> float:
    """Return the mean number of pairs within `degrees` (root mean square) of uniform, independent angles.

    It is the number of pairs times the share that a ball has of the torus T^m, which is exact while the ball
    does not meet itself (degrees · √m ≤ 180) and an upper bound beyond.
    """
    radius = math.radians(degrees) * math.sqrt(angles)
    log_ball = angles / 2 * math.log(math.pi) - math.lgamma(angles / 2 + 1) + angles * math.log(radius)
    log_share = log_ball - angles * math.log(2 * math.pi)
    return math.comb(images, 2) * min(math.exp(min(log_share, 0.0)), 1.0)


def angles_for(images: int, degrees: float) -> int | None:
    """Return the fewest angles that give less than one pair by chance; None if that is too many."""
    return next((m for m in range(1, MOST_ANGLES + 1) if expected(images, m, degrees) < 1), None)


def warning(found: int, by_chance: int, images: int, angles: int, degrees: float) -> str | None:
    """Say that most of the pairs `found` are chance, and what to do; None if they are not."""
    if not by_chance or found >= 2 * by_chance:
        return None
    needed = angles_for(images, degrees)
    if needed and needed <= angles:
        return (
            f"these pairs say little: most are chance, as the {angles} angles are far from uniform; it takes "
            "a smaller --within"
        )
    head = f"a head of {needed} angles, or " if needed else ""
    are = "1 angle is" if angles == 1 else f"{angles} angles are"
    return (
        f"these pairs say little: {are} too few to tell {images:,} images apart at {degrees:g}°; it takes "
        f"{head}a smaller --within"
    )
