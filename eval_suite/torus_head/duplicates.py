"""Find images with nearly the same angles in a torus head.

The angles are kept in a `WindingMemory`, so that each image is compared only with those in nearby cells.
"""

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from data_pipeline.dataset.index import Dataset
    from pretrain.geometry.memory import Found, WindingMemory

NEAREST = 9
"""Number of nearest images that are examined for each image, itself included."""


class Pair(NamedTuple):
    """Two images with nearly the same angles."""

    first: int
    """Row of one image."""
    second: int
    """Row of the other image, larger than `first`."""
    degrees: float
    """Root mean square difference of their angles."""


def search(angles: NDArray[np.float64], memory: "WindingMemory", within: float) -> list[Pair]:
    """Return the pairs of angles (n, m) that `memory` holds."""
    return pairs(angles, memory.query(angles, min(NEAREST, len(angles))), within)


def pairs(angles: NDArray[np.float64], neighbours: "Found", within: float) -> list[Pair]:
    """List the pairs of neighbours whose angles (n, m) differ by at most `within` degrees, nearest first.

    Each pair is listed once. A row has at most `NEAREST` neighbours, so for many copies of one image not all
    pairs are listed, but each copy is in one of them.
    """
    # The distances of the memory are rounded, so they are computed again.
    away = np.angle(np.exp(1j * (angles[neighbours.ids] - angles[:, None])))
    degrees = np.rad2deg(np.sqrt(np.square(away).mean(axis=2)))
    first, place = np.nonzero((degrees <= within) & (neighbours.ids != np.arange(len(angles))[:, None]))
    second, apart = neighbours.ids[first, place], degrees[first, place]
    listed = {
        (min(a, b), max(a, b)): d
        for a, b, d in zip(first.tolist(), second.tolist(), apart.tolist(), strict=True)
        if b >= 0
    }
    return sorted((Pair(a, b, d) for (a, b), d in listed.items()), key=lambda pair: (pair.degrees, pair[:2]))


def as_csv(duplicates: Sequence[Pair], datasets: "Sequence[Dataset]") -> str:
    """Return a CSV table of the pairs: data set, number and key of both images, and their distance."""
    starts = np.cumsum([0, *(len(data) for data in datasets)])
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["data_1", "sample_1", "key_1", "data_2", "sample_2", "key_2", "degrees"])
    for pair in duplicates:
        row: list[object] = []
        for number in pair[:2]:
            which = int(np.searchsorted(starts, number, side="right")) - 1
            sample = int(number - starts[which])
            row += [datasets[which].path, sample, datasets[which].key(sample)]
        writer.writerow([*row, f"{pair.degrees:.4g}"])
    return stream.getvalue()
