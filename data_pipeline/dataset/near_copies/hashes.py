"""Perceptual hashes of 64 bits (pHash, Zauner 2010), and the search for those that are nearly equal.

A hash is divided into 9 parts of 7 bits (the last of 8). If two hashes differ in at most 6 bits, at most 6
parts differ, so at least 3 are equal. For each choice of 3 parts, the search sorts the hashes by these parts
and compares those that are equal in them (multi-index hashing, Norouzi et al. 2012). Besides the hashes, it
needs memory for blocks of about 130,000 hashes, however many there are.

imagehash (BSD) computes the same hash for one image at a time.
"""

from collections.abc import Iterator
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn

from data_pipeline.dataset.near_copies.thumbnails import Thumbnails

MOST_BITS = 6
"""Largest number of bits in which the hashes of near copies differ."""

_FREQUENCIES = 8  # in each direction, so that a hash has 64 bits
_SHIFTS = tuple(range(0, 63, 7))  # where each of the 9 parts begins, in bits
_PARTS = len(_SHIFTS)
_EQUAL = 3  # smallest number of equal parts
_FIRST_VALUES = 128  # how many values a part of 7 bits has
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
    # Only neighbours in this order are compared. Sorting by a fourth part too puts hashes that agree in it,
    # which are more likely to be near copies, next to each other.
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
        for part in earlier:  # a pair with an earlier equal part was yielded for an earlier choice of parts
            near &= _part(apart, part) != 0
        one, other = rows[left[near]], rows[left[near] + step]
        yield np.minimum(one, other), np.maximum(one, other)
        left = left[left < len(head) - step - 1]
        left = left[head[left] == head[left + step + 1]]
    cut[rows[left]] = True
