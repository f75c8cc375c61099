"""Keyed pseudo-random permutations of [0, n) in O(1) memory, and the keys of independent random streams.

The permutation is a Feistel network over pairs (left, right) in Z_a × Z_b with a·b ≥ n (Black & Rogaway,
"Ciphers with Arbitrary Finite Domains", CT-RSA 2002). Results of n or more are fed in again until they are
below n ("cycle walking"). Because a and b are close to √n, this happens to fewer than one number in √n.
numpy's `Generator.permutation` needs O(n) memory and has no access to single elements.
"""

import math

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 6
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2⁶⁴ divided by the golden ratio

BLOCKS, START, WINDOW, MIXTURE, SOURCE = range(2**63, 2**63 + 5)
"""The purpose of a stream, used as its first counter. `sample_index` has the epoch there, and a mixture's
period and an epoch are always smaller than these numbers."""


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply the output function of SplitMix64 (Steele, Lea & Flood 2014): a bijection that mixes 64-bit
    words well.
    """
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def stream(seed: int, *counters: int | NDArray[np.integer]) -> NDArray[np.uint64]:
    """Return the keys of the streams that the counters name, each an int or (m,), not negative: (1,) or
    (m,).
    """
    keys = mix(np.array([seed % 2**64], dtype=np.uint64))
    for counter in counters:
        keys = mix(keys ^ np.asarray(counter, dtype=np.uint64))
    return keys


def permute(x: NDArray[np.uint64], keys: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """Return the images of `x` under permutations of [0, n), each with its own key; `x` and `keys` are (m,).

    1 ≤ n ≤ 2**40.
    """
    assert 1 <= n <= 2**40, n
    x = _network(x, keys, n)
    while len(outside := np.flatnonzero(x >= n)):
        x[outside] = _network(x[outside], keys[outside], n)
    return x


def _network(x: NDArray[np.uint64], keys: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """Apply the Feistel network, a bijection of [0, a·b), to `x` (m,) with `keys` (m,)."""
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    right, left = np.divmod(x, np.uint64(a))
    for _ in range(_ROUNDS):
        keys = mix(keys)
        left = (left + mix(keys ^ right) % np.uint64(a)) % np.uint64(a)
        keys = mix(keys)
        right = (right + mix(keys ^ left) % np.uint64(b)) % np.uint64(b)
    return right * np.uint64(a) + left
