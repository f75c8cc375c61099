"""What is known about one shard: the index rows of its samples, and counts and sums over them."""

import zlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset.index import Dataset, key_hash
from data_pipeline.dataset.moments import Moments
from data_pipeline.dataset.table_files import ROW
from isotorus.errors import UserError, one_line
from isotorus.section import Section


class Content(Section):
    """The images of a shard that have a certain number of channels."""

    images: int
    """Number of images."""
    first: str
    """Path of one of the images, for messages."""
    moments: Moments


def contents_of(dataset: Dataset) -> dict[int, Content]:
    """Return the contents of a whole data set, as those of a shard, by number of channels."""
    known = dataset.description
    return {known.channels: Content(images=known.count, first=f"in {dataset.path}", moments=known.moments)}


class Part(Section):
    """The counts of one shard."""

    samples: int
    bytes: int
    sha256: str
    contents: dict[int, Content]
    """The shard's images by their number of channels."""
    sixteen_bit: int
    """Number of images with 16 bits a channel."""
    extensions: list[str]
    """File extensions of the images; column `kind` of the shard's index rows is an index into this list."""
    channel_names: list[list[str]] = []
    """The distinct lists of channel names that the files state; an empty list stands for files without."""
    masks: int = 0
    """Number of images that have a mask."""
    mask_classes: list[int] = []
    """Numbers of the classes that occur in the masks."""
    skipped: list[tuple[str, str]]
    """Path and reason of every file that was left out."""


class Mark(NamedTuple):
    """The counts of a `Census` at one time."""

    rows: int
    contents: dict[int, Content]
    sixteen_bit: int
    extensions: int
    channel_names: set[tuple[str, ...]]


class Census:
    """Counts the samples of one shard, which are added one after another."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, ...]] = []
        self._contents: dict[int, Content] = {}
        self._sixteen_bit = 0
        self._extensions: list[str] = []
        self._channel_names: set[tuple[str, ...]] = set()
        self._masks = 0
        self._mask_classes: set[int] = set()
        self._skipped: list[tuple[str, str]] = []

    def mark(self) -> Mark:
        """Return the present counts, for `rewind`."""
        return Mark(
            len(self._rows),
            dict(self._contents),
            self._sixteen_bit,
            len(self._extensions),
            set(self._channel_names),
        )

    def rewind(self, mark: Mark) -> None:
        """Forget the images that were added after a mark."""
        del self._rows[mark.rows :], self._extensions[mark.extensions :]
        self._contents, self._sixteen_bit = mark.contents, mark.sixteen_bit
        self._channel_names = mark.channel_names

    def add(
        self,
        path: str,
        key: str,
        extension: str,
        label: int,
        offset: int,
        data: bytes,
        pixels: NDArray[np.uint8] | NDArray[np.uint16],
        valid: NDArray[np.bool_] | None = None,
    ) -> None:
        """Count the image file `data` at `offset` of the shard, which decodes to `pixels` (H, W, C).

        `valid` says which values enter the statistics; None: all.
        """
        height, width, channels = pixels.shape
        if extension not in self._extensions:
            self._extensions.append(extension)
        kind = self._extensions.index(extension)
        self._rows.append((0, offset, len(data), label, width, height, zlib.crc32(data), key_hash(key), kind))
        self._sixteen_bit += pixels.dtype == np.uint16
        known, moments = self._contents.get(channels), Moments.of_image(pixels, valid)
        self._contents[channels] = Content(
            images=known.images + 1 if known else 1,
            first=known.first if known else one_line(path),
            moments=known.moments + moments if known else moments,
        )

    def add_channel_names(self, names: Iterable[str]) -> None:
        """Record the channel names that an image states; `names` is empty if it states none."""
        self._channel_names.add(tuple(names))

    def add_mask(self, classes: Iterable[int]) -> None:
        """Count the mask of an image that was added, in which these classes occur."""
        self._masks += 1
        self._mask_classes.update(classes)

    def skip(self, path: str, reason: str) -> None:
        """Count a file that is left out, with the reason."""
        self._skipped.append((one_line(path), reason))

    def part(self, size: int, sha256: str) -> tuple[Part, NDArray[np.void]]:
        """Return the counts and index rows of the finished shard of `size` bytes; the rows have shard
        number 0.
        """
        part = Part(
            samples=len(self._rows),
            bytes=size,
            sha256=sha256,
            contents=self._contents,
            sixteen_bit=self._sixteen_bit,
            extensions=self._extensions,
            channel_names=sorted(map(list, self._channel_names)),
            masks=self._masks,
            mask_classes=sorted(self._mask_classes),
            skipped=self._skipped,
        )
        return part, np.array(self._rows, dtype=ROW)


def common_channels(contents: Iterable[Mapping[int, Content]]) -> int:
    """Return the number of channels of the data set: 1 if all images are grey, 3 if some are in colour.

    Other numbers are returned if all images have them, and 0 if there are no images. Raises `UserError` if
    images differ otherwise.
    """
    images: dict[int, int] = {}
    first: dict[int, str] = {}
    for content in contents:
        for channels, some in content.items():
            images[channels] = images.get(channels, 0) + some.images
            first.setdefault(channels, some.first)
    if len(images) > 1 and set(images) != {1, 3}:
        each = ", ".join(f"{c} in {images[c]} (first: {first[c]})" for c in sorted(images))
        raise UserError(
            f"the images have different numbers of channels: {each}; "
            "keep those of one number with --channels N, which leaves the others out"
        )
    return max(images, default=0)
