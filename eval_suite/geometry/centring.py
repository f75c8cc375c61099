"""Centre a cloud of features in float64, and name the reason why one has no geometry.

Every measure takes its features through here before it changes their precision: differences between features
far from the origin are lost in float32, and the squares of very large or small ones leave its range.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isotorus.errors import UserError

Array = NDArray[np.floating]

ROUNDING = 16
"""Differences up to this many units in the last place of the largest feature count as rounding."""
LARGEST = 1e60
"""Largest absolute feature, and inverse of the smallest spread: sums of fourth powers stay in float64."""


def checked(x: ArrayLike) -> Array:
    """Return `x` (n, …, d) as an array of floating-point numbers, whole numbers as float64.

    Raises UserError for an array without rows and features, and for values that are not finite or so large
    that their powers are not.
    """
    x = np.asarray(x)
    x = x if np.issubdtype(x.dtype, np.floating) else x.astype(np.float64)
    if x.ndim < 2 or not x.size:
        raise UserError(f"features of shape {x.shape}: expected (samples, dimensions)")
    if not np.isfinite(x).all():
        bad = int((~np.isfinite(x)).reshape(len(x), -1).any(axis=1).sum())
        raise UserError(f"{bad} of {len(x)} samples have NaN or infinite features; leave them out")
    if (size := largest(x)) > LARGEST:
        raise UserError(f"features as large as {size:.0e}, whose powers overflow; divide them by a constant")
    return x


def largest(x: Array) -> float:
    """Return the largest absolute value in `x`, without a copy of it."""
    return max(float(x.max()), -float(x.min()))


def rounding(x: Array) -> float:
    """Return the difference of two features of `x`, in its own precision, that rounding alone explains."""
    return float(ROUNDING * np.finfo(x.dtype).eps * largest(x))


def collapsed(x: Array) -> bool:
    """Return whether the rows of `x` (n, d) are equal up to `rounding`."""
    spread = x.max(axis=0).astype(np.float64) - x.min(axis=0)
    return float(spread.max()) <= rounding(x)


def centred(x: ArrayLike) -> NDArray[np.float64]:
    """Return `x` (n, d) minus its mean, in float64.

    Raises UserError as `checked` does, for an array without two axes, for a single row, for rows that are
    equal up to rounding, and for a spread whose powers are below the range of float64.
    """
    x = checked(x)
    if x.ndim != 2:
        raise UserError(f"features of shape {x.shape}: expected (samples, dimensions)")
    if len(x) < 2:
        raise UserError("1 sample has no geometry; give 2 or more")
    if collapsed(x):
        raise UserError(
            f"the embedding has collapsed: all {len(x)} samples have the same features up to rounding (they "
            f"differ by {np.ptp(x, axis=0).max():.0e}, the largest is {largest(x):.0e}); train again"
        )
    # Taking off one row first is exact for near values, so the mean is that of small numbers.
    moved = np.subtract(x, x[0], dtype=np.float64)
    moved -= moved.mean(axis=0)
    if (spread := largest(moved)) < 1 / LARGEST:
        raise UserError(
            f"features differ by only {spread:.0e}, whose powers vanish; multiply them by a constant"
        )
    return moved
