"""Find images that occur more than once: exact copies in whole data sets, near copies in a sample of them."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn
from scipy.sparse.csgraph import connected_components

from data_pipeline.dataset.index import Corrupt, Dataset
from data_pipeline.dataset.near_copies.hashes import MOST_BITS
from data_pipeline.dataset.near_copies.pairs import LEAST_CORRELATION

COMPARED = 10_000
"""Most image files that are read to confirm that equal sizes and checksums mean equal bytes."""
THUMBNAIL = 32
"""Side in pixels of the grey thumbnails that near copies are found by."""

_CHUNK = 2**22  # rows of the index that are read at once
_FREQUENCIES = 8  # in each direction, so that a hash has 64 bits
_COARSE = 16  # side in pixels of the images that are correlated
_PRIOR = 10


@dataclass(frozen=True)
class Copies:
    """Samples that have copies, as arrays (k,); the members of a group are next to each other."""

    group: NDArray[np.int64]
    """Number of the sample's group, ascending from 0."""
    dataset: NDArray[np.int64]
    """Number of the data set that contains the sample."""
    index: NDArray[np.int64]
    """Index of the sample in that data set."""

    @property
    def groups(self) -> int:
        """Number of groups."""
        return int(self.group[-1]) + 1 if len(self.group) else 0

    def differ(self, values: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return for every sample (k,) whether its group has different `values` (k,); -1 stands for
        unknown.
        """
        starts = np.flatnonzero(np.diff(self.group, prepend=-1))
        if len(starts) == 0:
            return np.zeros(0, dtype=np.bool_)
        lowest = np.minimum.reduceat(np.where(values < 0, np.iinfo(np.int64).max, values), starts)
        return (lowest < np.maximum.reduceat(values, starts))[self.group]


def exact(datasets: Sequence[Dataset]) -> tuple[Copies, int]:
    """Return all samples whose image files are equal, and how many of them were not confirmed by reading.

    Candidates have equal size and CRC-32 in the index, which takes 8 bytes of memory per sample. They are
    confirmed by reading the files, small groups first, up to `COMPARED` files.
    """
    codes = np.concatenate([codes for _, _, codes in _codes(datasets)])
    codes.sort()
    repeated = np.unique(codes[1:][codes[1:] == codes[:-1]])
    del codes
    if len(repeated) == 0:
        return _grouped(*np.zeros((3, 0), dtype=np.int64)), 0

    candidates = []
    for number, start, chunk in _codes(datasets):
        place = np.searchsorted(repeated, chunk).clip(max=len(repeated) - 1)
        rows = np.flatnonzero(repeated[place] == chunk)
        candidates.append((place[rows], np.full_like(rows, number), start + rows))
    group, dataset, index = (np.concatenate(column) for column in zip(*candidates, strict=True))

    order = np.lexsort((group, np.bincount(group)[group]))
    group, dataset, index = group[order], dataset[order], index[order]
    ends = np.append(np.flatnonzero(np.diff(group)) + 1, len(group))
    read = int(ends[ends <= COMPARED].max(initial=0))
    content = [
        _digest(datasets[d], i) for d, i in zip(dataset[:read].tolist(), index[:read].tolist(), strict=True)
    ]
    confirmed = np.append(np.array(content, dtype=np.uint64), group[read:].astype(np.uint64))
    return _grouped(confirmed, dataset, index), len(group) - read


def near(thumbnails: NDArray[np.float32], dataset: NDArray[np.int64], index: NDArray[np.int64]) -> Copies:
    """Return groups of similar images among grey `thumbnails` (n, 32, 32) of samples (n,); n is a few
    thousand.

    Two images are similar if their perceptual hashes (Zauner 2010: signs of low cosine frequencies about
    their median) differ in at most `MOST_BITS` of 64 bits, and if their differences from the mean image have
    a correlation of at least `LEAST_CORRELATION`, which are the limits of `verify --duplicates`. The second
    condition is needed where all images show one kind of thing and so have similar hashes. A group consists
    of all images that chains of similar pairs connect. Images of one grey value are left out.

    imagehash (BSD) computes the same hash for one image at a time; here all hashes are computed and compared
    as matrices.
    """
    contrast = thumbnails.std(axis=(1, 2)) > 0
    thumbnails, dataset, index = thumbnails[contrast], dataset[contrast], index[contrast]
    if len(thumbnails) < 2:
        return _grouped(*np.zeros((3, 0), dtype=np.int64))

    frequencies = dctn(thumbnails, axes=(1, 2))[:, :_FREQUENCIES, :_FREQUENCIES].reshape(len(thumbnails), -1)
    signs = np.where(frequencies > np.median(frequencies[:, 1:], axis=1, keepdims=True), 1, -1)
    bits_apart = (signs.shape[1] - signs.astype(np.float32) @ signs.T.astype(np.float32)) / 2

    step = THUMBNAIL // _COARSE
    coarse = _standardised(thumbnails.reshape(-1, _COARSE, step, _COARSE, step).mean(axis=(2, 4)))
    # The sum is divided by n + 10: with few images, their own mean would remove what they have in common.
    special = _standardised(coarse - coarse.sum(axis=0) / (len(coarse) + _PRIOR))
    correlation = special @ special.T / special.shape[1]

    alike = (bits_apart <= MOST_BITS) & (correlation >= LEAST_CORRELATION)
    _, component = connected_components(alike, directed=False)
    return _grouped(component, dataset, index)


def _codes(datasets: Sequence[Dataset]) -> Iterator[tuple[int, int, NDArray[np.uint64]]]:
    """Yield pieces of the indexes: number of the data set, first row, and size and checksum of each row as
    one word.
    """
    for number, dataset in enumerate(datasets):
        for start in range(0, len(dataset), _CHUNK):
            rows = dataset.rows[start : start + _CHUNK]
            yield number, start, rows["size"].astype(np.uint64) << np.uint64(32) | rows["checksum"]


def _digest(dataset: Dataset, index: int) -> int:
    """Return a 64-bit hash of an image file; a damaged file gets a hash of its own."""
    try:
        data = dataset.read(index)
    except Corrupt:
        data = f"{dataset.path} {index}".encode(errors="surrogateescape")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _standardised(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return images (n, …) as rows (n, d) with mean 0 and variance 1; rows of constant images are 0."""
    rows = images.reshape(len(images), -1)
    rows = rows - rows.mean(axis=1, keepdims=True)
    deviation = rows.std(axis=1, keepdims=True)
    return rows / np.where(deviation > 0, deviation, 1)


def _grouped(code: NDArray[np.integer], dataset: NDArray[np.int64], index: NDArray[np.int64]) -> Copies:
    """Return the samples whose `code` (k,) occurs more than once, sorted by group, data set and index."""
    _, code, sizes = np.unique(code, return_inverse=True, return_counts=True)
    shared = sizes[code] > 1
    _, group = np.unique(code[shared], return_inverse=True)
    dataset, index = dataset[shared], index[shared]
    order = np.lexsort((index, dataset, group))
    return Copies(group[order], dataset[order], index[order])
