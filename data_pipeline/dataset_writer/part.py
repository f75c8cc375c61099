"""What is known of one shard: the index rows of its samples, and sums over their pixels."""

import zlib
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset.index import ROW, Dataset, key_hash
from data_pipeline.dataset.moments import Moments
from isotorus.errors import UserError, one_line
from isotorus.section import Section


class Content(Section):
    """Those of a shard's images that have a certain number of channels."""

    images: int
    first: str
    """Path of one of them, to be named to the user."""
    moments: Moments


def contents_of(dataset: Dataset) -> dict[int, Content]:
    """Return the contents of a whole data set, as those of a shard, by number of channels."""
    known = dataset.description
    return {known.channels: Content(images=known.count, first=f"in {dataset.path}", moments=known.moments)}


class Part(Section):
    """What is known of a shard besides its index rows."""

    samples: int
    bytes: int
    sha256: str
    contents: dict[int, Content]
    """By number of channels."""
    sixteen_bit: int
    """Images with 16 bits a channel."""
    extensions: list[str]
    """What `kind` in its index rows counts."""
    skipped: list[tuple[str, str]]
    """Path and reason of every file that was left out."""


class Census:
    """Counts the samples of one shard as they pass."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, ...]] = []
        self._contents: dict[int, Content] = {}
        self._sixteen_bit = 0
        self._extensions: list[str] = []
        self._skipped: list[tuple[str, str]] = []

    def add(
        self,
        path: str,
        key: str,
        extension: str,
        label: int,
        offset: int,
        data: bytes,
        pixels: NDArray[np.uint8] | NDArray[np.uint16],
    ) -> None:
        """Count an image file `data` that lies at `offset` of the shard and decodes to `pixels` (H, W, C)."""
        height, width, channels = pixels.shape
        if extension not in self._extensions:
            self._extensions.append(extension)
        kind = self._extensions.index(extension)
        self._rows.append((0, offset, len(data), label, width, height, zlib.crc32(data), key_hash(key), kind))
        self._sixteen_bit += pixels.dtype == np.uint16
        known = self._contents.get(channels)
        self._contents[channels] = Content(
            images=known.images + 1 if known else 1,
            first=known.first if known else one_line(path),
            moments=known.moments + Moments.of_image(pixels) if known else Moments.of_image(pixels),
        )

    def skip(self, path: str, reason: str) -> None:
        self._skipped.append((one_line(path), reason))

    def part(self, size: int, sha256: str) -> tuple[Part, NDArray[np.void]]:
        """Of the finished shard of `size` bytes; its index rows count from shard 0."""
        part = Part(
            samples=len(self._rows),
            bytes=size,
            sha256=sha256,
            contents=self._contents,
            sixteen_bit=self._sixteen_bit,
            extensions=self._extensions,
            skipped=self._skipped,
        )
        return part, np.array(self._rows, dtype=ROW)


def common_channels(contents: Iterable[Mapping[int, Content]]) -> int:
    """The number of channels that images have together: 1 if all are greyscale, 3 if some are in
    colour; 0 of no images.

    Raises `UserError` if they have different numbers otherwise.
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
