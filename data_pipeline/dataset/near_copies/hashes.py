"""Perceptual hashes of 64 bits (pHash, Zauner 2010), and the search for those that are nearly equal.

Two hashes of at most 6 different bits share at least 3 of 9 parts of 7 bits (8 for the last), because 6
differences touch at most 6 parts. So for each choice of 3 parts, hashes that are equal in these are sorted
next to each other and compared (multi-index hashing, Norouzi et al. 2012). Besides the hashes, the search
takes memory for blocks of about 130,000 hashes, however many there are.

imagehash (BSD) computes the same hash for one image at a time.
"""

from collections.abc import Iterator
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn

from data_pipeline.dataset.near_copies.thumbnails import Thumbnails

MOST_BITS = 6
"""Most bits in which the hashes of near copies differ."""

_FREQUENCIES = 8  # in each direction, so that a hash has 64 bits
_SHIFTS = tuple(range(0, 63, 7))  # of the 9 parts
_PARTS = len(_SHIFTS)
_EQUAL = 3  # parts that are equal at least
_FIRST_VALUES = 128  # of a part of 7 bits
_BLOCK = 2**17  # hashes that are sorted at once
_MOST_NEIGHBOURS = 64  # so that a set of a million equal images takes no longer than others
_MOST_EQUAL = 8

Rows = NDArray[np.int64]
Hashes = NDArray[np.uint64]


def hashes(thumbnails: Thumbnails) -> Hashes:
    """Return the hash of each thumbnail (n,): which of its 64 lowest cosine frequencies are above their
    median.
    """
    spectrum = dctn(thumbnails.astype(np.float32), axes=(1, 2))[:, :_FREQUENCIES, :_FREQUENCIES]
    flat = spectrum.reshape(len(spectrum), -1)
    bits = flat > np.median(flat[:, 1:], axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def alike(codes: Hashes, usable: NDArray[np.bool_], cut: NDArray[np.bool_]) -> Iterator[tuple[Rows, Rows]]:
    """Yield pairs of rows (k,) and (k,), the smaller first, whose hashes differ in at most 6 bits.

    Rows that are not `usable` (n,) are left out. Of rows with equal hashes the first stands for all: it is
    paired with every other, each is paired with the next 8, and only the first is compared with other hashes.
    A hash is compared with at most 64 others for each choice of parts; the rows for which there were more are
    marked in `cut` (n,).
    """
    for first in range(_PARTS - _EQUAL + 1):
        for rows in _blocks(codes, usable, first):
            values, starts, pairs = _equal(codes, rows)
            if first == 0:
                yield from pairs
            for others in combinations(range(first + 1, _PARTS), _EQUAL - 1):
                yield from _compared(values, starts, (first, *others), cut)


def _part(codes: Hashes, number: int) -> Hashes:
    """Return one of the 9 parts of each hash."""
    part = codes >> np.uint64(_SHIFTS[number])
    return part if number == _PARTS - 1 else part & np.uint64(_FIRST_VALUES - 1)


def _blocks(codes: Hashes, usable: NDArray[np.bool_], part: int) -> Iterator[Rows]:
    """Yield blocks of rows, ascending, such that rows whose hashes are equal in a part are in one block."""
    count = min(-(-len(codes) // _BLOCK), _FIRST_VALUES)
    limits = [_FIRST_VALUES * i // count for i in range(count + 1)] if count else []
    for low, high in pairwise(limits):
        found = []
        for start in range(0, len(codes), _BLOCK):
            value = _part(codes[start : start + _BLOCK], part)
            inside = (value >= low) & (value < high) & usable[start : start + _BLOCK]
            found.append(start + np.flatnonzero(inside))
        yield np.concatenate(found)


def _equal(codes: Hashes, rows: Rows) -> tuple[Hashes, Rows, list[tuple[Rows, Rows]]]:
    """Return the different hashes of some rows, the first row of each, and pairs of rows with equal
    hashes.
    """
    order = np.argsort(codes[rows], kind="stable")
    ordered, rows = codes[rows][order], rows[order]
    is_first = np.diff(ordered, prepend=~ordered[:1]) != 0
    starts = np.flatnonzero(is_first)
    run = np.cumsum(is_first) - 1
    later = np.flatnonzero(~is_first)
    pairs = [(rows[starts[run[later]]], rows[later])]
    for step in range(1, min(_MOST_EQUAL, len(rows) - 1) + 1):
        same = np.flatnonzero((ordered[step:] == ordered[:-step]) & ~is_first[:-step])
        pairs.append((rows[same], rows[same + step]))
    return ordered[starts], rows[starts], pairs


def _compared(
    codes: Hashes, rows: Rows, parts: tuple[int, ...], cut: NDArray[np.bool_]
) -> Iterator[tuple[Rows, Rows]]:
    """Yield the pairs of rows whose different hashes have these three parts, and no earlier three, equal."""
    # A fourth part of the key brings hashes together that have more in common.
    fourth = next(part for part in range(_PARTS) if part not in parts)
    key = np.zeros(len(codes), np.uint32)
    for number in (*parts, fourth):
        width = 8 if number == _PARTS - 1 else 7
        key = key << np.uint32(width) | _part(codes, number).astype(np.uint32)
    order = np.argsort(key)
    codes, rows, head = codes[order], rows[order], key[order] >> np.uint32(7)
    earlier = [part for part in range(parts[-1]) if part not in parts]
    left = np.flatnonzero(head[1:] == head[:-1])
    for step in range(1, _MOST_NEIGHBOURS + 1):
        if len(left) == 0:
            return
        apart = codes[left] ^ codes[left + step]
        near = np.bitwise_count(apart) <= MOST_BITS
        for part in earlier:  # such a pair is yielded for other parts
            near &= _part(apart, part) != 0
        one, other = rows[left[near]], rows[left[near] + step]
        yield np.minimum(one, other), np.maximum(one, other)
        left = left[left < len(head) - step - 1]
        left = left[head[left] == head[left + step + 1]]
    cut[rows[left]] = True
