"""How uniform angles are on a flat torus: U over its mean under uniformity, by Weyl's criterion."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.objectives.toroidal import torus_uniformity
from pretrain.objectives.torus_frequencies import all_frequencies, balanced_s, sample_frequencies

CUTOFF, RANDOM = 3, 1024
"""Largest frequency that is tested for up to three angles; number of random frequencies for more."""
Array = NDArray[np.floating]


def tested(k: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the frequencies (F, k) that are tested for `k` angles, and their weights (F,)."""
    s = balanced_s(k)
    if k <= 3:
        return all_frequencies(k, CUTOFF, s)
    drawn, each = sample_frequencies(k, RANDOM, s, seed, 0)
    frequencies, often = torch.unique(drawn, dim=0, return_counts=True)
    return frequencies, often * each[0]


def over_null(angles: Array, frequencies: Tensor, weights: Tensor) -> float:
    """Return U of the angles (n, k), in radians, over its mean under uniformity.

    It is 1 on average for uniform angles. For others it grows with n.
    """
    known = torch.from_numpy(np.asarray(angles, np.float64))
    return float(torus_uniformity(known, frequencies, weights)) / float(weights.sum())


def of_circles(x: Array, seed: int) -> float:
    """Return U over its null of the angles whose cosines and sines stand in turn in `x` (n, 2k)."""
    pairs = np.reshape(x, (len(x), -1, 2))
    angles = np.arctan2(pairs[..., 1], pairs[..., 0])
    return over_null(angles, *tested(angles.shape[1], seed))
