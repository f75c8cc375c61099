"""Features to zero mean and unit deviation, by the training split's."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


def standardiser(train_x: Array) -> Callable[[Array], NDArray[np.float64]]:
    """A function of features (m, d) that takes off the mean of `train_x` (n, d) and divides by its deviation.

    A dimension that is constant up to rounding, next to the one that varies most, is only centred.
    """
    mean, std = train_x.mean(axis=0, dtype=np.float64), train_x.std(axis=0, dtype=np.float64)
    std[std < 1e-6 * max(float(std.max()), 1e-30)] = 1.0
    return lambda x: (x - mean) / std
