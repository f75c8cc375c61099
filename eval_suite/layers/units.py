"""The units of a block behind its nonlinearities: dormant ones, and the patterns of their signs."""

import numpy as np
from numpy.typing import NDArray

from isotorus.randomness import generator

Bits = NDArray[np.bool_]

DORMANT = 0.025
"""τ of Sokar et al. 2023."""
UNITS = 10
"""Of one draw of patterns."""
DRAWS = 40


def dormant(magnitude: NDArray[np.floating]) -> float:
    """Share of units whose mean |h| (units,) is at most 0.025 of the mean over units.

    Sokar et al. 2023, arXiv:2302.12902. 1 where all are silent.
    """
    mean = float(magnitude.mean())
    return float((magnitude <= DORMANT * mean).mean()) if mean > 0 else 1.0


def patterns(positive: Bits, *, units: int = UNITS, draws: int = DRAWS, seed: int = 0) -> float:
    """Distinct sign patterns of n images on `units` units (n, units), over those of fair independent signs.

    The mean over `draws` choices of units. All units together would tell any two images apart; a handful
    shows how evenly the images are spread over the cells that the nonlinearity cuts. 1: as coins would;
    near 0: all images in few cells.
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
    """How many of 2^units equally likely cells n draws are expected to meet."""
    cells = 2.0**units
    return cells * -float(np.expm1(n * np.log1p(-1 / cells)))


def drift(before: Bits, after: Bits) -> float:
    """Share of signs of the same images and units that two checkpoints have otherwise; ½ by chance."""
    return float((before != after).mean())
