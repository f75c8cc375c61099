"""Random numbers as a function of a key: no generator keeps state from one call to the next."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def generator(seed: int, stream: int = 0, counter: Sequence[int] = (0, 0, 0, 0)) -> np.random.Generator:
    """Return a Philox generator (counter-based, Salmon et al. 2011) for a seed and a stream.

    The streams of one seed are independent. Two counters are independent if they differ in the second, third
    or fourth of their 64-bit words; the first word counts the numbers drawn.
    """
    key = np.array([seed % 2**64, stream % 2**64], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array(counter, np.uint64)))


def rows(n: int, most: int, seed: int, draw: int = 0) -> NDArray[np.int64]:
    """Return the sorted indices of at most `most` of `n` rows, chosen at random.

    Different values of `draw` give independent choices for the same seed.
    """
    return np.sort(generator(seed, draw).permutation(n)[:most])
