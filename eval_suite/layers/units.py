"""The units of a block, that is its activations after a nonlinearity: dormant units and sign patterns."""

import numpy as np
from numpy.typing import NDArray

from isotorus.randomness import generator

Bits = NDArray[np.bool_]

DORMANT = 0.025
"""Threshold τ of Sokar et al. 2023, relative to the mean over units."""
UNITS = 10
"""Number of units in a sign pattern."""
DRAWS = 40
"""Number of random choices of these units."""


def dormant(magnitude: NDArray[np.floating]) -> float:
    """Return the share of units whose mean activation |h| is at most 0.025 times the mean over all units.

    `magnitude` (units,) holds the mean |h| of each unit. 1 if all units are 0. Sokar et al. 2023,
    arXiv:2302.12902.
    """
    mean = float(magnitude.mean())
    return float((magnitude <= DORMANT * mean).mean()) if mean > 0 else 1.0


def patterns(positive: Bits, *, units: int = UNITS, draws: int = DRAWS, seed: int = 0) -> float:
    """Return the number of distinct sign patterns of images, relative to that of fair coins.

    `positive` (n, all units) says whether a unit is above 0 for each of n images. A pattern is the signs of
    `units` random units; the number is averaged over `draws` such choices. It is 1 if the images are spread
    over the patterns like fair independent coins, and near 0 if they have few patterns. All units together
    would give each image its own pattern.
    """
    n, width = positive.shape
    units = min(units, width)
    counts = []
    for draw in range(draws):
        random = generator(seed, draw)
        chosen = positive[:, random.permutation(width)[:units]]
        counts.append(len(np.unique(chosen @ (1 << np.arange(units)))))
    return float(np.mean(counts)) / expected_patterns(n, units)


def expected_patterns(n: int, units: int) -> float:
    """Return the expected number of distinct patterns in n draws from 2^units equally likely ones."""
    possible = 2.0**units
    return possible * -float(np.expm1(n * np.log1p(-1 / possible)))


def drift(before: Bits, after: Bits) -> float:
    """Return the share of signs (n, units) in which two checkpoints differ; ½ is chance."""
    return float((before != after).mean())
