"""Which samples show the same: groups of copies that must not be on both sides of a fold."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset.index import Dataset
from data_pipeline.preview import duplicates
from data_pipeline.preview.duplicates import Copies
from data_pipeline.preview.image_statistics import small, thumbnail
from isotorus.errors import UserError
from isotorus.processes import usable_cores

MOST = 10_000
"""Largest number of images that are compared in pairs, which takes memory of the square of their number."""
Codes = dict[str, NDArray[np.uint64]]
"""Number of the group of copies of each sample (n,) by split, from 1 up; 0 for a sample without copies."""


def of_images(datasets: Mapping[str, Dataset], looked_at: Mapping[str, NDArray[np.bool_]]) -> list[Codes]:
    """Return groups of exact copies, and groups of near copies as `isotorus preview` finds them.

    Near copies are searched for among the samples (n,) `looked_at`, unless these are more than `MOST`. An
    image that cannot be read has no group.
    """
    splits = list(datasets.values())
    exact, _ = duplicates.exact(splits)
    places = [(number, int(i)) for number, of in enumerate(looked_at.values()) for i in np.flatnonzero(of)]
    near = [_near(splits, places)] if len(places) <= MOST else []
    return [_by_split(copies, datasets) for copies in (exact, *near)]


def of_rows(features: Mapping[str, NDArray[np.floating]]) -> list[Codes]:
    """Return groups of equal rows of the features (n, d) of all splits.

    If most rows equal another one, the features are too coarse to show copies, and no row gets a group.
    """
    rows = np.concatenate(list(features.values()))
    _, row, counts = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
    row = row.ravel()
    shared = counts[row] > 1
    group = np.where(shared, row + 1, 0).astype(np.uint64) * np.uint64(shared.mean() <= 0.5)
    ends = np.cumsum([len(x) for x in features.values()])
    return [dict(zip(features, np.split(group, ends[:-1]), strict=True))]


def _near(splits: list[Dataset], places: list[tuple[int, int]]) -> Copies:
    """Find near copies among samples, each given as the number of its data set and its index there."""

    def read(place: tuple[int, int]) -> NDArray[np.float32] | None:
        try:
            return thumbnail(small(splits[place[0]], place[1], None, None))
        except (UserError, ValueError):
            return None

    with ThreadPoolExecutor(usable_cores()) as pool:
        images = dict(zip(places, pool.map(read, places), strict=True))
    seen = {place: image for place, image in images.items() if image is not None}
    dataset, index = np.array(list(seen), dtype=np.int64).reshape(-1, 2).T
    size = duplicates.THUMBNAIL
    return duplicates.near(np.array(list(seen.values()), np.float32).reshape(-1, size, size), dataset, index)


def _by_split(copies: Copies, datasets: Mapping[str, Dataset]) -> Codes:
    """Return the group of each sample of each data set."""
    codes = {}
    for number, (name, dataset) in enumerate(datasets.items()):
        here = copies.dataset == number
        codes[name] = np.zeros(len(dataset), np.uint64)
        codes[name][copies.index[here]] = copies.group[here].astype(np.uint64) + 1
    return codes
