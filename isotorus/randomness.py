"""Rows drawn from a seed, for what compares all pairs."""

import numpy as np
from numpy.typing import NDArray


def rows(n: int, most: int, seed: int, draw: int = 0) -> NDArray[np.int64]:
    """Ascending indices of `most` of `n` rows, or of all; another `draw` of the same seed is independent."""
    random = np.random.Generator(np.random.Philox(key=[seed, draw]))
    return np.sort(random.permutation(n)[:most])
