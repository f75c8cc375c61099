"""dataset.json: what a packed data set holds, generation by generation."""

import hashlib
import json
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from data_pipeline.dataset.moments import Moments
from data_pipeline.storage.cache import CacheConfig
from data_pipeline.storage.reader import fetch, is_remote, join
from isotorus.errors import UserError, from_os_error
from isotorus.section import Section

FORMAT: Final = 2
DESCRIPTION = "dataset.json"
SKIPPED = "skipped.txt"
"""Name of the file that lists the images which were left out, one line each: path, tab, reason."""
_SIDES = 2**16


class Unreadable(UserError):
    """There is a dataset.json, but not one of this format."""


class Extent(Section):
    """Of one side of the images, in pixels."""

    min: int
    median: int
    max: int


class Split(Section):
    """How the images were shared out to the sets beside this one."""

    val_fraction: float
    test_fraction: float
    grouped: bool
    """Whether by group; otherwise every image by itself."""


class Generation(Section):
    """The data set as one packing left it: the first `count` rows of the index, the first `shards` shards."""

    count: int
    """Samples."""
    shards: int
    bytes: int
    """Of all shards."""
    classes: list[str]
    """Class names in the order of their index; empty if the set is unlabelled."""
    class_counts: list[int]
    """Samples a class."""
    channels: int
    """1 if every image is greyscale, 3 if some are in colour, else the number that all images have."""
    depth: Literal[8, 16]
    """16 if any image has 16 bits a channel, else 8."""
    sixteen_bit: int
    """Samples with 16 bits a channel."""
    extensions: list[str]
    """Kinds of image files in the order of their number in the index, e.g. "jpg"."""
    extension_counts: list[int]
    """Samples an extension."""
    mean: list[float]
    """Mean of all pixels a channel, where 0 is black and 1 is white."""
    std: list[float]
    """Standard deviation of all pixels a channel, on the same scale; at least one grey level."""
    moments: Moments
    """The sums that mean and std follow from."""
    width: Extent
    height: Extent
    skipped: int
    """Files that this generation's packing left out; skipped.txt names them."""
    label_field: str | None = None
    """Field of the samples' `.json` that the labels of this generation's shards are from; None: `.cls`."""
    split: Split | None
    """None if all images went into this set."""
    plan: str
    """Fingerprint of what was to be packed: files, sizes, labels and options."""
    fingerprint: str
    """Identifies the data, wherever it lies: 16 hex digits of a SHA-256 over shards, index and classes."""


class Description(Section):
    """What dataset.json says."""

    format: Literal[2] = FORMAT
    generations: list[Generation] = Field(min_length=1)
    """The newest last; the older ones can still be opened."""


def describe(path: str, cache: CacheConfig) -> Description:
    """Read dataset.json; `UserError` if `path` is no packed data set, `Unreadable` if it cannot be read."""
    file = join(path, DESCRIPTION)
    try:
        return _parse(fetch(file, cache).read_bytes(), file)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{path} is not a packed data set ({DESCRIPTION} is missing); {_advice(path)}"
        ) from None
    except OSError as error:
        raise from_os_error(error, f"reading {file}") from error


def _parse(text: bytes, file: str) -> Description:
    try:
        return Description.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{'.'.join(map(str, first['loc']))} {first['msg']}".strip()
        raise Unreadable(
            f"{file} is damaged or of another version than format {FORMAT} ({what}); pack the images again"
        ) from None


def _advice(path: str) -> str:
    if not Path(path).exists():
        return "there is no such folder, check the path"
    if sets := subsets(path):
        names = ", ".join(Path(name).name for name in sets)
        return f"it holds the sets {names}: name one of them, e.g. {sets[0]}"
    return f"make one with: python -m data_pipeline pack IMAGES {path}"


def subsets(path: str) -> list[str]:
    """The data sets that a packing with a split has made in `path`."""
    return [] if is_remote(path) else sorted(str(file.parent) for file in Path(path).glob(f"*/{DESCRIPTION}"))


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
