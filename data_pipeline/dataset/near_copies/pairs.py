"""Pairs of near copies among thumbnails: candidates by their hashes, confirmed by their correlation."""

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset.near_copies import thumbnails
from data_pipeline.dataset.near_copies.hashes import MOST_BITS, Rows, alike, hashes
from data_pipeline.dataset.near_copies.thumbnails import SIDE

LEAST_CORRELATION = 0.97
"""Smallest correlation of the thumbnails of near copies, after the mean image is subtracted from both."""

_CHUNK = 2**14  # thumbnails; pieces of this size bound the memory
_PRIOR = 10  # with few images, their own mean would remove what they have in common


class Copy(NamedTuple):
    """An image that is a near copy of another one before it."""

    row: int
    of: int
    """Row of the other image."""
    bits: int
    """Number of bits in which their hashes differ."""
    correlation: float
    """Correlation of their thumbnails, after the mean image is subtracted from both."""


class NearCopies:
    """The near copies among the images whose thumbnails are in a file.

    `groups` (n,) are those of the images, 0 for none. Images of one group, such as the slices of a volume,
    are no copies of each other. Besides the copies that are found, memory holds a hash and a group for each
    image.
    """

    def __init__(self, file: Path, groups: NDArray[np.uint64] | None = None) -> None:
        self._file, self._groups = file, groups
        count = len(np.load(file, mmap_mode="r"))
        self._hashes = np.zeros(count, np.uint64)
        shown = np.zeros(count, np.bool_)
        total = np.zeros((SIDE, SIDE), np.int64)
        for start in range(0, count, _CHUNK):
            some = thumbnails.read(file, slice(start, start + _CHUNK))
            shown[start : start + _CHUNK] = some.any(axis=(1, 2))
            self._hashes[start : start + _CHUNK] = hashes(some)
            total += some.sum(axis=0)
        self.flat = count - int(shown.sum())
        """Number of images of one grey value, and of those without a thumbnail, which are not compared."""
        self._mean = (total / (count - self.flat + _PRIOR)).astype(np.float32)
        cut = np.zeros(count, np.bool_)
        found = [self._confirmed(*some) for some in alike(self._hashes, shown, cut)]
        pairs = np.concatenate([np.zeros((0, 2), np.int64), *found])
        self.pairs: NDArray[np.int64] = pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))]
        """Pairs of rows (k, 2), the smaller first, sorted by the second."""
        self.cut = int(cut.sum())
        """Number of images with so many similar hashes that not all pairs were compared."""

    def copies(self, *, of_kept: bool, stay: int = 0) -> list[Copy]:
        """Return the images that are near copies of an earlier one, each with the earliest such image that is
        known. The first `stay` images are never returned as copies.

        With `of_kept`, an image only counts as a copy if the other one is no copy itself. So every image that
        is left out has a near copy among those that stay, and of a film that changes slowly many frames stay.
        """
        before = defaultdict(list)
        for first, second in self.pairs[self.pairs[:, 1] >= stay].tolist():
            before[second].append(first)
        found: dict[int, Copy] = {}
        for row, near in before.items():
            # If this image is near a copy, it may also be near that copy's original, a pair that the search
            # by hashes may have left out.
            others = {found[other].of for other in near if other in found} - set(near)
            eligible = {other for other in near if not (of_kept and other in found)}
            for other in sorted(eligible | others):
                if copy := self._copy(row, other):
                    found[row] = copy
                    break
        return list(found.values())

    def _copy(self, row: int, of: int) -> Copy | None:
        """Return what two images have in common; None if they are no near copies."""
        if self._of_one_group(np.array([[row, of]]))[0]:
            return None
        bits = int(np.bitwise_count(self._hashes[row] ^ self._hashes[of]))
        one, other = self._special(np.array([row, of]))
        correlation = float(one @ other)
        near = bits <= MOST_BITS and correlation >= LEAST_CORRELATION
        return Copy(row, of, bits, round(correlation, 4)) if near else None

    def _confirmed(self, first: Rows, second: Rows) -> Rows:
        """Return the pairs (k, 2) of rows whose thumbnails are correlated."""
        kept = [np.zeros((0, 2), np.int64)]
        for start in range(0, len(first), _CHUNK):
            some = np.stack([first[start : start + _CHUNK], second[start : start + _CHUNK]], axis=1)
            rows, place = np.unique(some, return_inverse=True)
            special = self._special(rows)
            one, other = special[place.reshape(some.shape)].transpose(1, 0, 2)
            near = np.einsum("ij,ij->i", one, other) >= LEAST_CORRELATION
            kept.append(some[near & ~self._of_one_group(some)])
        return np.concatenate(kept)

    def _of_one_group(self, pairs: Rows) -> NDArray[np.bool_]:
        """Return for each of the pairs (k, 2) of rows whether the images are of one group."""
        if self._groups is None:
            return np.zeros(len(pairs), np.bool_)
        one, other = self._groups[pairs].T
        return (one == other) & (one != 0)

    def _special(self, rows: Rows) -> NDArray[np.float32]:
        """Return how images differ from the mean image, as rows (n, d) with mean 0 and norm 1."""
        images = (thumbnails.read(self._file, rows) - self._mean).reshape(len(rows), -1)
        images -= images.mean(axis=1, keepdims=True)
        norms = np.linalg.norm(images, axis=1, keepdims=True)
        special: NDArray[np.float32] = (images / np.where(norms > 0, norms, 1)).astype(np.float32)
        return special
