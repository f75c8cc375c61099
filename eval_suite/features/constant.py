"""Whether features vary at all, judged by the rounding of their type."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

ROUNDINGS = 32
"""Relative differences up to this number of roundings are those of computing one value twice."""


def rounding(x: Array) -> float:
    """Return the relative rounding of the type of `x`: 1.2e-7 for float32, 2.2e-16 for float64."""
    return float(np.finfo(x.dtype if np.issubdtype(x.dtype, np.floating) else np.float64).eps)


def is_constant(x: Array) -> bool:
    """Say whether two or more rows of `x` (n, d) are all the same, up to rounding relative to their size.

    This is what a collapsed encoder gives.
    """
    if len(x) < 2:
        return False
    largest, smallest = x.max(axis=0).astype(np.float64), x.min(axis=0).astype(np.float64)
    size = max(float(np.abs(largest).max()), float(np.abs(smallest).max()))
    return float((largest - smallest).max()) <= ROUNDINGS * rounding(x) * size
