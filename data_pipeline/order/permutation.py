"""Keyed permutations of [0, n) in O(1) memory, and the keys that tell their streams apart.

The permutation is a Feistel network over the mixed-radix domain Z_a × Z_b, a·b ≥ n (Black & Rogaway,
"Ciphers with Arbitrary Finite Domains", CT-RSA 2002), walked until it lands below n. Because a and b
are close to √n, fewer than one number in √n is walked more than once.
"""

import math

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 6
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

BLOCKS, START, WINDOW, MIXTURE, SOURCE = range(2**63, 2**63 + 5)
"""What a stream is for: far above any epoch or period, which is where `sample_index` has its counter."""


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's step (Steele, Lea & Flood 2014): a bijection of 64-bit words that mixes well."""
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def stream(seed: int, *counters: int | NDArray[np.integer]) -> NDArray[np.uint64]:
    """Keys of the streams named by the counters (each an int or (m,), not negative): (1,) or (m,)."""
    keys = mix(np.array([seed % 2**64], dtype=np.uint64))
    for counter in counters:
        keys = mix(keys ^ np.asarray(counter, dtype=np.uint64))
    return keys


def permute(x: NDArray[np.uint64], keys: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """Where the permutation of [0, n) with key `keys[i]` takes `x[i]`; all are (m,), 1 ≤ n ≤ 2**40."""
    assert 1 <= n <= 2**40, n
    x = _network(x, keys, n)
    while len(outside := np.flatnonzero(x >= n)):
        x[outside] = _network(x[outside], keys[outside], n)
    return x


def _network(x: NDArray[np.uint64], keys: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    right, left = np.divmod(x, np.uint64(a))
    for _ in range(_ROUNDS):
        keys = mix(keys)
        left = (left + mix(keys ^ right) % np.uint64(a)) % np.uint64(a)
        keys = mix(keys)
        right = (right + mix(keys ^ left) % np.uint64(b)) % np.uint64(b)
    return right * np.uint64(a) + left
