"""Random numbers as a function of a key: no generator keeps its state between two calls."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def generator(seed: int, stream: int = 0, counter: Sequence[int] = (0, 0, 0, 0)) -> np.random.Generator:
    """A Philox generator (Salmon et al. 2011, counter-based) keyed by a seed and a stream.

    Streams of one seed are independent, and so are counters that differ in any but the first of their four
    64-bit words: the first one counts the draws.
    """
    key = np.array([seed % 2**64, stream % 2**64], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array(counter, np.uint64)))


def rows(n: int, most: int, seed: int, draw: int = 0) -> NDArray[np.int64]:
    """Ascending indices of `most` of `n` rows, or of all; another `draw` of the same seed is independent."""
    return np.sort(generator(seed, draw).permutation(n)[:most])
