"""dataset.json: what a packed data set contains, with one record for each generation."""

import hashlib
import json
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from data_pipeline.dataset.moments import Moments
from data_pipeline.decoders.intensity import NONE, Intensity
from data_pipeline.decoders.pixels import PixelRules
from data_pipeline.scientific_formats.picture import Reading
from data_pipeline.storage.cache import CacheConfig
from data_pipeline.storage.reader import fetch, is_remote, join, refuse_password
from isotorus.errors import UserError, from_os_error
from isotorus.section import Section

FORMAT: Final = 2
DESCRIPTION = "dataset.json"
SKIPPED = "skipped.txt"
"""Name of the file that lists the images which were left out, one line each: path, tab, reason."""
_SIDES = 2**16  # an image's side is less than this many pixels


class Unreadable(UserError):
    """A dataset.json that exists but is damaged or has another format version."""


class Extent(Section):
    """The smallest, median and largest width or height of the images, in pixels."""

    min: int
    median: int
    max: int


class Split(Section):
    """How images were divided into the train, val and test sets."""

    val_fraction: float
    test_fraction: float
    grouped: bool
    """Whether images were divided by group; if not, each image was assigned by itself."""
    by_column: bool = False
    """Whether a column of the table named the set of each image; then the fractions are 0."""
    stratified: bool = False
    """Whether each class was divided in these fractions; if not, each group was assigned by its hash."""


class MaskRule(Section):
    """Which pixel values of the mask files are which class."""

    values: list[int] = []
    """Pixel value of each class, in the order of the classes' numbers; empty: a value is its class's number,
    and 255 is none."""
    names: list[str] = []
    """Names of the classes; empty: their numbers."""


PLAIN: Final = MaskRule()
"""The rule for masks whose values are the numbers of the classes."""


class Masks(Section):
    """The masks of a set."""

    images: int
    """Number of images that have a mask."""
    classes: list[int]
    """Numbers of the classes that occur in any mask, or did in one that `isotorus remove` has taken out."""
    rule: MaskRule


class Generation(Section):
    """The data set after one packing: the first `count` rows of the index and the first `shards` shards."""

    count: int
    """Number of samples."""
    shards: int
    bytes: int
    """Size of all shards in bytes."""
    classes: list[str]
    """Class names in the order of their index; empty if no sample has a label."""
    class_counts: list[int]
    """Number of samples in each class."""
    channels: int
    """1 if all images are grey, 3 if some are in colour, else the number that all images have."""
    channel_names: list[str] | None = None
    """Names of the channels in the order of the images; None if they have none."""
    depth: Literal[8, 16]
    """16 if any image has 16 bits a channel, else 8."""
    sixteen_bit: int
    """Number of samples with 16 bits a channel."""
    extensions: list[str]
    """File extensions of the images, such as "jpg"; column `kind` of the index is an index into this list."""
    extension_counts: list[int]
    """Number of samples with each extension."""
    mean: list[float]
    """Mean of all pixels in each channel, on the scale where black is 0 and white is 1."""
    std: list[float]
    """Standard deviation of all pixels in each channel, on the same scale; at least one grey level."""
    moments: Moments
    """The sums from which mean and std are computed."""
    width: Extent
    height: Extent
    skipped: int
    """Number of files that this generation's packing left out; skipped.txt lists them."""
    label_field: str | None = None
    """Field of the samples' JSON files that contains the labels of this generation; None: a label is the
    whole text of a file."""
    label_extension: str | None = None
    """What the names of the files with the labels end in; None: `.json` if there is a `label_field`, else
    `.cls`."""
    tar_names_in_keys: bool = False
    """Whether keys begin with the names of their tars; the same in all generations."""
    missing: list[str] | None = None
    """Cells of those files that mean "no label"; None: those that `tables.cells` lists."""
    table_missing: list[str] | None = None
    """Cells of the table of images that mean "no label"; None: those that `tables.cells` lists."""
    pixel_rules: PixelRules = 1
    """Version of the rules by which files become pixels, see `decoders.pixels`; sets that are older than the
    first number lack this key."""
    reading: Reading | None = None
    """How files of scientific formats, such as DICOM, were read; None if the set holds none. A set that holds
    some has a files.npy."""
    intensity: Intensity = NONE
    """How the numbers of the images become brightness, the same in all generations; sets without this key
    hold unsigned numbers of 8 or 16 bits, of which the largest is white."""
    masks: Masks | None = None
    """What is known about masks; None if no images were packed with any."""
    split: Split | None
    """None if all images went into this set."""
    groups: int | None = None
    """Number of groups of samples, such as patients, which groups.npy lists; None if none are known."""
    spacing: int | None = None
    """Number of samples whose spacing is known, which spacing.npy lists; None if no file states it."""
    removed: int = 0
    """Number of samples that `isotorus remove` has taken out of the set until this generation."""
    tables: int = Field(0, ge=0)
    """Number in the names of this generation's tables, as in index.2.npy; 0 for index.npy. Generations with
    the same number are beginnings of the same tables."""
    plan: str
    """Hash of what was to be packed: files, sizes, labels and options."""
    fingerprint: str
    """Identifies the data independently of its location: 16 hex digits of a SHA-256 over shards, index and
    classes."""

    def table(self, name: str) -> str:
        """Return the name of a table of this generation, such as index.2.npy for `name` index.npy."""
        return table_name(name, self.tables)


class Former(Section):
    """What remains of a generation that `isotorus compact` has dropped: enough to know its sample order."""

    fingerprint: str
    count: int
    bytes: int


class Description(Section):
    """The content of dataset.json."""

    format: Literal[2] = FORMAT
    generations: list[Generation] = Field(min_length=1)
    """All generations, the oldest first; each of them can still be opened."""
    former: list[Former] = []
    """Generations that held images which were removed and whose bytes are gone."""


def table_name(name: str, number: int) -> str:
    """Return the name of the table `name` with the number of `Generation.tables`."""
    return f"{name.removesuffix('.npy')}.{number}.npy" if number else name


def describe(path: str, cache: CacheConfig) -> Description:
    """Read the dataset.json of a data set.

    Raises `UserError` if `path` is not a packed data set, and `Unreadable` if its dataset.json cannot be
    read.
    """
    refuse_password(path)
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
    """Validate the text of a dataset.json; raise `Unreadable` with the first fault."""
    try:
        return Description.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{'.'.join(map(str, first['loc']))} {first['msg']}".strip()
        raise Unreadable(
            f"{file} is damaged or of another version than format {FORMAT} ({what}); pack the images again"
        ) from None


def _advice(path: str) -> str:
    """Say what to do about a path that is not a packed data set."""
    if not Path(path).exists():
        return "there is no such folder, check the path"
    if sets := subsets(path):
        names = ", ".join(Path(name).name for name in sets)
        return f"it holds the sets {names}: name one of them, e.g. {sets[0]}"
    return f"make one with: isotorus pack IMAGES {path}"


def subsets(path: str) -> list[str]:
    """Return the folders of the sets that `pack` with a split has made in `path`; empty if there is no
    split.
    """
    return [] if is_remote(path) else sorted(str(file.parent) for file in Path(path).glob(f"*/{DESCRIPTION}"))


class IndexCounts:
    """Counts the rows of an index (dtype `index.ROW`) for dataset.json; rows are given in pieces."""

    def __init__(self, classes: int, kinds: int) -> None:
        self.labels = np.zeros(classes, np.int64)
        """Number of samples in each class."""
        self.kinds = np.zeros(kinds, np.int64)
        """Number of samples with each file extension."""
        self._widths = np.zeros(_SIDES, np.int64)
        self._heights = np.zeros(_SIDES, np.int64)
        self._digest = hashlib.sha256()

    def add(self, rows: NDArray[np.void]) -> None:
        """Count further rows, in the order of the index."""
        self.labels += np.bincount(rows["label"][rows["label"] >= 0], minlength=len(self.labels))
        self.kinds += np.bincount(rows["kind"], minlength=len(self.kinds))
        self._widths += np.bincount(rows["width"], minlength=_SIDES)
        self._heights += np.bincount(rows["height"], minlength=_SIDES)
        self._digest.update(rows.tobytes())

    @property
    def width(self) -> Extent:
        """Smallest, median and largest width of the images."""
        return _extent(self._widths)

    @property
    def height(self) -> Extent:
        """Smallest, median and largest height of the images."""
        return _extent(self._heights)

    def fingerprint(
        self,
        classes: list[str],
        extensions: list[str],
        channels: int,
        depth: int,
        shards: NDArray[np.void],
        pixel_rules: PixelRules,
        intensity: Intensity,
    ) -> str:
        """Return the fingerprint of the data set: a hash of the rows counted so far, of the `shards` they
        refer to, and of the rules by which these become pixels.
        """
        identity = [self._digest.hexdigest(), classes, extensions, channels, depth]
        identity += [pixel_rules] if pixel_rules > 1 else []  # sets of rules 1 keep their fingerprints
        identity += [intensity.model_dump()] if intensity.is_stated else []
        return hashlib.sha256(json.dumps(identity).encode() + shards["sha256"].tobytes()).hexdigest()[:16]


def _extent(counts: NDArray[np.int64]) -> Extent:
    """Return smallest, median and largest side, where `counts[s]` images have a side of s pixels."""
    ends = np.cumsum(counts)
    middle = np.searchsorted(ends, [(ends[-1] - 1) // 2, ends[-1] // 2], side="right")
    sides = np.flatnonzero(counts)
    return Extent(min=int(sides[0]), median=int(middle.mean()), max=int(sides[-1]))
