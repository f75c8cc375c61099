"""Turn the stored numbers of a file into values in its units, in a type that a data set can hold."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_TYPES = (np.uint8, np.uint16, np.int16, np.float32, np.uint32)


def scaled(stored: NDArray[Any], slope: float, intercept: float) -> NDArray[Any]:
    """Return stored · slope + intercept: int16 if all values are whole numbers that fit, else float32.

    Slope 1 with intercept 0 leaves the numbers as `storable` returns them.
    """
    if slope == 1 and intercept == 0:
        return storable(stored)
    if stored.dtype.kind in "biu" and float(slope).is_integer() and float(intercept).is_integer():
        ends = [int(end) * int(slope) + int(intercept) for end in (stored.min(), stored.max())]
        if np.iinfo(np.int16).min <= min(ends) and max(ends) <= np.iinfo(np.int16).max:
            return (stored.astype(np.int64) * int(slope) + int(intercept)).astype(np.int16)
    return (stored.astype(np.float64) * slope + intercept).astype(np.float32)


def storable(values: NDArray[Any]) -> NDArray[Any]:
    """Return the values as uint8, uint16, int16, uint32 or float32, in the byte order of this machine.

    Other whole numbers become int16 or uint32 if all values fit, and otherwise float32, which is exact to
    2²⁴. Raises ValueError for numbers that are not real.
    """
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if values.dtype in _TYPES:
        return values
    if values.dtype.kind == "b":
        return values.astype(np.uint8)
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return values.astype(np.float32)
    if values.dtype.kind not in "iu":
        raise ValueError(f"pixels of type {values.dtype}; expected whole or real numbers")
    for kind in (np.int16, np.uint32):
        limits = np.iinfo(kind)
        if limits.min <= values.min() and values.max() <= limits.max:
            return values.astype(kind)
    return values.astype(np.float32)
