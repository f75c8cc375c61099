"""What users should know about their images before they train: copies, damaged images, sizes, classes."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from data_pipeline.preview import duplicates
from data_pipeline.preview.duplicates import Copies
from data_pipeline.preview.image_statistics import ImageStatistics, measure_images
from data_pipeline.preview.sets import Sets
from data_pipeline.transforms.action_checks import doubts
from data_pipeline.transforms.config import ViewsConfig

FEW = 10
"""A class with fewer images than this gets a warning."""
_NAMED = 5  # most names in a warning


@dataclass(frozen=True)
class Duplicates:
    """Groups of copies, and which of them are in several sets or classes."""

    copies: Copies
    crossing: NDArray[np.bool_]
    """For every sample (k,), whether its group is in several sets."""
    conflicting: NDArray[np.bool_]
    """For every sample (k,), whether its group is in several classes."""

    @property
    def surplus(self) -> int:
        """Number of copies, not counting the first sample of each group."""
        return len(self.copies.group) - self.copies.groups

    @property
    def conflicts(self) -> int:
        """Number of groups that are in several classes."""
        return len(np.unique(self.copies.group[self.conflicting]))

    def leaked(self, dataset: int) -> int:
        """Return the number of samples of a set that have a copy in another set."""
        return int((self.crossing & (self.copies.dataset == dataset)).sum())


@dataclass(frozen=True)
class Findings:
    """All findings about the sets."""

    measured: ImageStatistics
    exact: Duplicates
    unread: int
    """Number of exact copies that were found by size and checksum, but not confirmed by reading."""
    near: Duplicates
    """Near copies among the images that were decoded."""
    warnings: list[str]


def find(sets: Sets, views: ViewsConfig, seed: int, workers: int) -> Findings:
    """Search the whole indexes for exact copies, and a sample of images, drawn by `seed`, for everything
    else.
    """
    copies, unread = duplicates.exact(sets.datasets)
    exact = _with_crossings(copies, sets)
    measured = measure_images(sets.datasets, sets.datasets[0].channels, sets.depth, seed, workers)
    alone = _without_copies(measured, copies)
    near = _with_crossings(
        duplicates.near(measured.thumbnails[alone], measured.dataset[alone], measured.index[alone]),
        sets,
    )
    warnings = [
        *_copy_warnings(sets, exact, near),
        *_image_warnings(sets, measured),
        *_size_warnings(sets, views),
        *doubts(views, sets.datasets, seed),
        *_class_warnings(sets),
    ]
    return Findings(measured, exact, unread, near, warnings)


def _with_crossings(copies: Copies, sets: Sets) -> Duplicates:
    """Add to groups of copies whether they are in several sets or classes."""
    labels = sets.labels(copies.dataset, copies.index)
    return Duplicates(copies, copies.differ(copies.dataset), copies.differ(labels))


def _without_copies(measured: ImageStatistics, copies: Copies) -> NDArray[np.int64]:
    """Return the indices of decoded images, with only the first of each group of exact copies."""
    group = -1 - np.arange(len(measured.index))
    _, looked_at, copy = np.intersect1d(
        measured.dataset << 40 | measured.index, copies.dataset << 40 | copies.index, return_indices=True
    )
    group[looked_at] = copies.group[copy]
    return np.sort(np.unique(group, return_index=True)[1])


def _copy_warnings(sets: Sets, exact: Duplicates, near: Duplicates) -> Iterator[str]:
    """Yield warnings about copies."""
    for number, name in enumerate(sets.names[1:], start=1):
        if leaked := exact.leaked(number):
            yield f"{many(leaked, 'image')} of {name} also in another set: scores on {name} will be too good"
    if exact.conflicts:
        yield f"{many(exact.conflicts, 'group')} of exact copies with different classes"
    if crossing := int(near.crossing.sum()):
        yield (
            f"{many(crossing, 'image')} of the sample with a near copy in another set; where several images "
            "show one thing, pack with --group-column to keep them together"
        )


def _image_warnings(sets: Sets, measured: ImageStatistics) -> Iterator[str]:
    """Yield warnings about images that are damaged, constant, of mixed depth, or left out."""
    if measured.unreadable:
        count, first = len(measured.unreadable), measured.unreadable[0]
        yield f"{many(count, 'image')} of the sample unreadable; first: {first}"
    constant = np.flatnonzero(measured.constant)
    if len(constant):
        black = int((measured.brightness[constant] == 0).sum())
        places = zip(measured.dataset[constant].tolist(), measured.index[constant].tolist(), strict=True)
        keys = [sets.datasets[dataset].key(index) for dataset, index in islice(places, _NAMED)]
        yield (
            f"{many(len(constant), 'image')} of the sample with one value all over, {black} of them black: "
            f"{_named(keys, len(constant))}"
        )
    for name, dataset in zip(sets.names, sets.datasets, strict=True):
        facts = dataset.description
        if 0 < facts.sixteen_bit < facts.count:
            yield (
                f"Mixed depths in {name}: {facts.sixteen_bit:,} of {facts.count:,} images have 16 bits a "
                "channel, the others 8; what was white in either is white"
            )
        if facts.skipped:
            yield f"{many(facts.skipped, 'file')} left out when {name} was packed; skipped.txt names them"


def _size_warnings(sets: Sets, views: ViewsConfig) -> Iterator[str]:
    """Yield a warning if images are smaller than a global view."""
    shortest = np.minimum(sets.column("width"), sets.column("height"))
    if small := int((shortest < views.global_size).sum()):
        share = "All" if small == len(sets) else f"{small:,} of {len(sets):,}"
        yield (
            f"{share} images with a side below the {views.global_size} pixels of a global view (down to "
            f"{shortest.min()}): their views are enlarged"
        )


def _class_warnings(sets: Sets) -> Iterator[str]:
    """Yield a warning if classes have few images."""
    counts = sets.class_counts().sum(axis=0)
    few = np.flatnonzero(counts < FEW)
    names = [f"{sets.classes[c]} ({counts[c]})" for c in few[np.argsort(counts[few], kind="stable")][:_NAMED]]
    if names:
        yield f"{many(len(few), 'class')} with fewer than {FEW} images: {_named(names, len(few))}"


def many(count: int, noun: str) -> str:
    """Return a count with its noun, for example "1 image", "2,000 images", "3 copies"."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


def _named(names: list[str], total: int) -> str:
    """Return names as a list, with the number of those that are not named."""
    return ", ".join(names) + (f" and {total - len(names):,} more" if total > len(names) else "")
