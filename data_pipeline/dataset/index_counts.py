"""What dataset.json says of the rows of an index: how many there are of each kind, and their fingerprint."""

import hashlib
import json

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset.description import Extent

_SIDES = 2**16


class IndexCounts:
    """Counts rows of dtype `index.ROW` as they pass."""

    def __init__(self, classes: int, kinds: int) -> None:
        self.labels = np.zeros(classes, np.int64)
        """Samples a class."""
        self.kinds = np.zeros(kinds, np.int64)
        """Samples an extension."""
        self._widths = np.zeros(_SIDES, np.int64)
        self._heights = np.zeros(_SIDES, np.int64)
        self._digest = hashlib.sha256()

    def add(self, rows: NDArray[np.void]) -> None:
        self.labels += np.bincount(rows["label"][rows["label"] >= 0], minlength=len(self.labels))
        self.kinds += np.bincount(rows["kind"], minlength=len(self.kinds))
        self._widths += np.bincount(rows["width"], minlength=_SIDES)
        self._heights += np.bincount(rows["height"], minlength=_SIDES)
        self._digest.update(rows.tobytes())

    @property
    def width(self) -> Extent:
        return _extent(self._widths)

    @property
    def height(self) -> Extent:
        return _extent(self._heights)

    def fingerprint(
        self, classes: list[str], extensions: list[str], channels: int, depth: int, shards: NDArray[np.void]
    ) -> str:
        """Of the data set of the rows so far and the `shards` that they point into."""
        identity = [self._digest.hexdigest(), classes, extensions, channels, depth]
        return hashlib.sha256(json.dumps(identity).encode() + shards["sha256"].tobytes()).hexdigest()[:16]


def _extent(counts: NDArray[np.int64]) -> Extent:
    """Of sides of which `counts[pixels]` have that many pixels."""
    ends = np.cumsum(counts)
    middle = np.searchsorted(ends, [(ends[-1] - 1) // 2, ends[-1] // 2], side="right")
    sides = np.flatnonzero(counts)
    return Extent(min=int(sides[0]), median=int(middle.mean()), max=int(sides[-1]))
