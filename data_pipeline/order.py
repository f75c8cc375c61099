"""The order of samples as a pure function: position in an endless run → sample index.

Epoch e of a run visits `permutation(seed, e)`. The permutation is a Feistel network over the
mixed-radix domain Z_a × Z_b, a·b ≥ n (Black & Rogaway, "Ciphers with Arbitrary Finite Domains",
CT-RSA 2002), walked until it lands below n. It needs no memory, and because a and b are close to √n,
fewer than one position in √n is walked more than once.
"""

import math
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 6
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

Position = TypeVar("Position", int, NDArray[np.int64])


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's step (Steele, Lea & Flood 2014): a bijection of 64-bit words that mixes well."""
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _permute(x: NDArray[np.uint64], keys: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """One pass through the network over Z_a × Z_b; `x` and `keys` have the same shape."""
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    right, left = np.divmod(x, np.uint64(a))
    for _ in range(_ROUNDS):
        keys = mix(keys)
        left = (left + mix(keys ^ right) % np.uint64(a)) % np.uint64(a)
        keys = mix(keys)
        right = (right + mix(keys ^ left) % np.uint64(b)) % np.uint64(b)
    return right * np.uint64(a) + left


def sample_index(position: Position, n: int, seed: int) -> Position:
    """The sample that position p of the run consumes: `permutation(seed, p // n)` of `p % n`.

    `position` is a non-negative int or int64 array of any shape; the result has the same shape, with
    values in [0, n). `n` may be as large as 2**40.
    """
    assert 1 <= n <= 2**40, n
    positions = np.asarray(position, dtype=np.int64)
    epochs, x = (part.astype(np.uint64).reshape(-1) for part in np.divmod(positions, n))
    keys = mix(mix(np.full_like(epochs, seed % 2**64)) ^ epochs)
    x = _permute(x, keys, n)
    while len(outside := np.flatnonzero(x >= n)):
        x[outside] = _permute(x[outside], keys[outside], n)
    if isinstance(position, np.ndarray):
        return x.astype(np.int64).reshape(positions.shape)
    return int(x[0])
