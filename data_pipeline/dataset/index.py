"""A packed data set: tar files in WebDataset's format (shards), and tables that locate every sample in them.

shard-000000.tar …   <key>.<ext> image bytes, <key>.cls class index, <key>.json other columns
index.npy            one row per sample (`ROW`), memory-mapped, sorted by shard and offset
shards.npy           one row per shard (`shard_row`), memory-mapped
groups.npy           one number per sample, the `key_hash` of its group or 0; only if groups were named
dataset.json         `description.Description`, with a record for each generation
files.npy            the file of each sample; only for sets with files of several samples (`dataset.files`)
modified.npy, spacing.npy  optional, see `dataset.modified` and `dataset.spacing`
withdrawn.npy        hashes and places of removed images (`dataset.withdrawn`); only if there are any

After `remove` the tables have a number in their names, such as index.2.npy, until `compact`.

Opening a data set checks a bounded number of shards and rows, so it takes as long for 10⁹ samples as for ten.
"""

import functools
import hashlib
import os
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset.description import Generation, describe
from data_pipeline.dataset.table_files import INDEX, SHARDS, does_not_fit, open_groups, open_rows, open_shards
from data_pipeline.decoders.intensity import Intensity
from data_pipeline.decoders.pixels import LUMA, PixelRules, Pixels, convertible
from data_pipeline.storage.cache import CacheConfig
from data_pipeline.storage.reader import Reader, is_remote, join, open_reader
from data_pipeline.storage.tar_reader import LONGEST_HEADERS, key_and_extension, names_before
from isotorus.errors import UserError, from_os_error

HEADERS = 2**14
"""Bytes before an image in which its key is looked for first; they nearly always contain it."""
LARGEST_IMAGE = 2**32 - 1
"""Largest size in bytes that an image file may have, as `ROW` stores sizes in 32 bits."""

_CHECKED_SHARDS = 64  # how many shards are checked when a data set is opened


class Corrupt(UserError):
    """The bytes of a sample are not the bytes that were packed."""


def key_hash(key: str) -> int:
    """Return the 64-bit hash by which the index stores a sample's key."""
    digest = hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def key_prefix(tar_names_in_keys: bool, shard: str) -> str:
    """Return what comes before the names in a shard to make the keys of its samples."""
    return f"{shard.removesuffix('.tar')}/" if tar_names_in_keys else ""


def key_before(headers: bytes, hashed: int, prefix: str) -> tuple[str, str] | None:
    """Return the key and the name of the image that follows the tar headers `headers`; None if no key there
    has this hash. `prefix` is that of the shard's keys.
    """
    for name in names_before(headers):
        key = prefix + (key_and_extension(name) or (name, ""))[0]
        if key_hash(key) == hashed:
            return key, name
    return None


class Dataset:
    """A packed data set, opened for reading any sample. It is cheap to open, to pickle and to fork.

    `generation` counts from 1; the default is the newest. `len()` is the number of samples. Raises
    `UserError` if `path` is not a data set or has no such generation, or if a shard is missing or does not
    have the size that it was packed with (at most 64 shards are checked).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        generation: int | None = None,
        cache: CacheConfig | None = None,
    ) -> None:
        self.path = os.fspath(path)
        self.cache = cache or CacheConfig()
        described = describe(self.path, self.cache)
        self.generations: list[Generation] = described.generations
        """All generations of the data set, the oldest first."""
        self.generation = len(self.generations) if generation is None else generation
        if not 1 <= self.generation <= len(self.generations):
            dropped = " (isotorus compact has dropped older ones)" if described.former else ""
            raise UserError(
                f"{self.path} has no generation {generation}{dropped}; expected 1 to "
                f"{len(self.generations)}, see isotorus info {self.path}"
            )
        for number in _evenly(len(self.shards)):
            self._check_size(number)
        _ = self.rows

    @functools.cached_property
    def rows(self) -> NDArray[np.void]:
        """The index (n,) of dtype `ROW`, mapped into memory."""
        return open_rows(self.path, self.description, self.cache)

    @functools.cached_property
    def shards(self) -> NDArray[np.void]:
        """The table of shards, of dtype `shard_row`, mapped into memory."""
        return open_shards(self.path, self.description, self.cache)

    @functools.cached_property
    def groups(self) -> NDArray[np.uint64] | None:
        """The group of every sample (n,) as the hash of its name, 0 for none; None if no groups are known."""
        return open_groups(self.path, self.description, self.cache)

    @functools.cached_property
    def _reader(self) -> Reader:
        """Reads the bytes of shards; opened at first use, in each process."""
        return open_reader(self.path, self.cache)

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("path", "generation", "generations", "cache")}

    @property
    def description(self) -> Generation:
        """The record of this generation in dataset.json."""
        return self.generations[self.generation - 1]

    def __len__(self) -> int:
        return self.description.count

    @property
    def classes(self) -> list[str]:
        """Class names in the order of their index."""
        return self.description.classes

    @property
    def labels(self) -> NDArray[np.int32]:
        """Class index of every sample (n,), -1 for no label; a view of the mapped index."""
        return np.asarray(self.rows["label"])

    @property
    def channels(self) -> int:
        """1 if all images are grey, 3 if some are in colour, else the number that all images have."""
        return self.description.channels

    @property
    def channel_names(self) -> list[str] | None:
        """Names of the channels in the order of the images; None if they have none."""
        return self.description.channel_names

    @property
    def depth(self) -> Literal[8, 16]:
        """16 if any image has 16 bits a channel, else 8."""
        return self.description.depth

    @property
    def pixel_rules(self) -> PixelRules:
        """Version of the rules by which the image files become pixels."""
        return self.description.pixel_rules

    @property
    def intensity(self) -> Intensity:
        """How the numbers of the images become brightness."""
        return self.description.intensity

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of all pixels in each channel, on the scale where white is 1."""
        return tuple(self.description.mean)

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of all pixels in each channel, on the scale where white is 1."""
        return tuple(self.description.std)

    @property
    def fingerprint(self) -> str:
        """Identifies the data of this generation independently of its location."""
        return self.description.fingerprint

    def statistics(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation in each channel of the images decoded to `channels`.

        `channels` is the images' own number, or 1 for colour images, or 3 for grey ones. The statistics of
        colour images made grey are luma-weighted sums: the mean is exact, the standard deviation an upper
        bound that is reached if the channels are perfectly correlated.
        """
        if channels == self.channels:
            return self.mean, self.std
        if not convertible(self.channels, channels):
            raise UserError(
                f"{self.path} has images of {self.channels} channels, {channels} are asked for; "
                f"ask for {self.channels}"
            )
        if channels == 3:
            return self.mean * 3, self.std * 3
        mean, std = (sum(w * x for w, x in zip(LUMA, s, strict=True)) for s in (self.mean, self.std))
        return (mean,), (std,)

    def read(self, i: int) -> bytes:
        """Return the bytes of the image file of sample `i`.

        Raises `Corrupt` if they are not the packed bytes, and `UserError` if they cannot be read.
        """
        row = self.rows[i]
        name, offset, size = self.shard_name(int(row["shard"])), int(row["offset"]), int(row["size"])
        for _ in range(2):
            data = self.read_range(i, offset, size)
            if zlib.crc32(data) == row["checksum"]:
                return data
            self._reader.forget(name, offset, size)  # perhaps only the cached copy is damaged
        raise self._changed(i, name)

    def pixels(
        self, i: int, channels: int | None, depth: Literal[8, 16] | None, shrink: Literal[1, 2, 4, 8] = 1
    ) -> Pixels:
        """Return the pixels (H, W, C) of sample `i`, see `decoders.decode`, by the rules of this data set.

        Raises ValueError if the image cannot be decoded, and errors as `read` does.
        """
        # Imported here: the commands that only look at tables do not need the image decoders.
        from data_pipeline.decoders.decode import decode

        return decode(self.read(i), channels, depth, shrink, self.pixel_rules, self.intensity)

    def extension(self, i: int) -> str:
        """Return the file extension of sample `i` without the dot, such as "jpg"."""
        kind, extensions = int(self.rows["kind"][i]), self.description.extensions
        if kind >= len(extensions):
            raise does_not_fit(join(self.path, INDEX))
        return extensions[kind]

    def key(self, i: int) -> str:
        """Return the WebDataset key of sample `i`: its path in the source folder or the tar, without the
        extension; if the tars' names are in the keys, it begins with that of its tar.
        """
        return self.key_and_name(i)[0]

    def key_and_name(self, i: int) -> tuple[str, str]:
        """Return the key of sample `i`, and the name of its image file in the shard."""
        row = self.rows[i]
        shard, offset = self.shard_name(int(row["shard"])), int(row["offset"])
        for reach in (HEADERS, LONGEST_HEADERS):
            headers = self.read_range(i, max(offset - reach, 0), min(offset, reach))
            if found := key_before(headers, int(row["key"]), self._prefix(shard)):
                return found
        raise self._changed(i, shard)

    def ranges(self, indices: NDArray[np.integer[Any]]) -> list[tuple[str, int, int]]:
        """Return the shard name, offset and size in bytes of each sample's image file."""
        rows = self.rows[indices]
        places = zip(rows["shard"].tolist(), rows["offset"].tolist(), rows["size"].tolist(), strict=True)
        return [(self.shard_name(shard), offset, size) for shard, offset, size in places]

    def name(self, i: int) -> str:
        """Return a name of sample `i` for messages: the data set, the index, and the key if it can be
        read.
        """
        try:
            return f"{self.path} {i} ({self.key(i)})"
        except UserError:
            return f"{self.path} {i}"

    @functools.cached_property
    def remote(self) -> bool:
        """Whether the shards are read over a network; only the first shard is looked at."""
        return is_remote(join(self.path, self.shard_name(0)))

    def prefetch(self, i: int) -> None:
        """Fetch the image file of sample `i` into the local cache in the background if it is remote; never
        raises.
        """
        ((name, offset, size),) = self.ranges(np.array([i]))
        self._reader.prefetch(name, offset, size)

    def _prefix(self, shard: str) -> str:
        """Return what comes before the names in a shard to make keys."""
        return key_prefix(self.description.tar_names_in_keys, shard)

    def shard_name(self, number: int) -> str:
        """Return the name of a shard: relative to the data set, or an absolute path or URL."""
        if number >= len(self.shards):
            raise does_not_fit(join(self.path, INDEX))
        name: str = self.shards["name"][number].decode(errors="surrogateescape")
        if "\0" in name:
            raise does_not_fit(join(self.path, SHARDS))
        return name

    def read_range(self, i: int, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset` on of the shard of sample `i`, after a check of the shard's
        size.
        """
        number = int(self.rows["shard"][i])
        shard, expected = self.shard_name(number), int(self.shards["bytes"][number])
        if (size_now := self._reader.size(shard)) != expected:
            raise self._other_size(shard, size_now, expected)
        return self._reader.read(shard, offset, size)

    def _check_size(self, number: int) -> None:
        """Raise `UserError` if a local shard is missing or does not have the size that it was packed with."""
        shard, expected = self.shard_name(number), int(self.shards["bytes"][number])
        path = join(self.path, shard)
        if is_remote(path):
            return
        try:
            size_now = Path(path).stat().st_size
        except OSError as error:
            raise from_os_error(error, f"opening shard {path}") from error
        if size_now != expected:
            raise self._other_size(shard, size_now, expected)

    def _other_size(self, shard: str, size_now: int, expected: int) -> UserError:
        """Return the error for a shard whose size has changed."""
        return UserError(
            f"shard {join(self.path, shard)} has {size_now} bytes, its index was made for {expected}; "
            f"run: isotorus verify {self.path}, and pack again"
        )

    def _changed(self, i: int, shard: str) -> Corrupt:
        """Return the error for a sample whose bytes have changed."""
        return Corrupt(
            f"shard {join(self.path, shard)} changed since the index was made (sample {i}); "
            f"run: isotorus verify {self.path}, and pack again"
        )


def _evenly(count: int) -> list[int]:
    """Return at most 64 numbers of `range(count)`, evenly spaced, including the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(count, _CHECKED_SHARDS)).astype(int)).tolist()
