"""A packed data set: WebDataset shards, and beside them where each sample lies.

shard-000000.tar …   <key>.<ext> image bytes, <key>.cls class index, <key>.json other columns
index.npy            a row a sample (`ROW`), memory-mapped, in the order of shards and offsets
shards.npy           a row a shard (`shard_row`), memory-mapped
dataset.json         `description.Description`, a record for each generation

Opening looks at a bounded number of shards and rows, so it takes as long for 10⁹ samples as for ten.
"""

import functools
import hashlib
import os
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset.description import DESCRIPTION, Generation, describe
from data_pipeline.decoders.pixels import LUMA, convertible
from data_pipeline.storage.cache import CacheConfig
from data_pipeline.storage.reader import Reader, fetch, is_remote, join, open_reader
from data_pipeline.storage.tar_reader import LONGEST_HEADERS, key_and_extension, names_before
from isotorus.errors import UserError, from_os_error

INDEX = "index.npy"
SHARDS = "shards.npy"
ROW = np.dtype(
    [
        ("shard", "<u4"),
        ("offset", "<u8"),
        ("size", "<u4"),
        ("label", "<i4"),
        ("width", "<u2"),
        ("height", "<u2"),
        ("checksum", "<u4"),
        ("key", "<u8"),
        ("kind", "u1"),
    ]
)
"""Row of the shard table, offset and size in bytes of the image there, class index or -1, pixels,
CRC-32 of the image's bytes, `key_hash`, and which of the generation's extensions it has."""
HEADERS = 2**14
"""Bytes before an image in which its key is looked for first; they nearly always contain it."""
LARGEST_IMAGE = 2**32 - 1
"""Bytes of a file that `ROW` has room for."""

_CHECKED_SHARDS = 64


class Corrupt(UserError):
    """A sample's bytes are not those that were packed."""


def shard_row(name_bytes: int) -> np.dtype[np.void]:
    """A row of the shard table: name relative to the data set, or an absolute path or URL; SHA-256 in hex."""
    return np.dtype(
        [
            ("name", f"S{name_bytes}"),
            ("bytes", "<u8"),
            ("samples", "<u8"),
            ("first", "<u8"),
            ("sha256", "S64"),
        ]
    )


def key_hash(key: str) -> int:
    """64 bits that stand for a sample's key in the index."""
    digest = hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def key_before(headers: bytes, hashed: int) -> str | None:
    """Return the key of the image that follows the tar headers `headers`; None if no key there has this
    hash.
    """
    for name in names_before(headers):
        key, _ = key_and_extension(name) or (name, "")
        if key_hash(key) == hashed:
            return key
    return None


class Dataset:
    """A packed data set, opened for reading any sample; cheap to open, to pickle and to fork.

    `generation` counts from 1 and is the newest if not given. `len()` is the number of samples.
    Raises `UserError` if `path` is no data set, has no such generation, or if a shard is missing or has
    another size than it was packed with (of many shards, 64 are looked at).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        generation: int | None = None,
        cache: CacheConfig | None = None,
    ) -> None:
        self.path = os.fspath(path)
        self._cache = cache or CacheConfig()
        self.generations: list[Generation] = describe(self.path, self._cache).generations
        """All there are, the oldest first."""
        self.generation = len(self.generations) if generation is None else generation
        if not 1 <= self.generation <= len(self.generations):
            raise UserError(
                f"{self.path} has no generation {generation}; expected 1 to {len(self.generations)}, "
                f"see python -m data_pipeline info {self.path}"
            )
        for number in _evenly(len(self.shards)):
            self._check_size(number)
        _ = self.rows

    @functools.cached_property
    def rows(self) -> NDArray[np.void]:
        """The index (n,) of dtype `ROW`, mapped into memory."""
        return open_rows(self.path, self.description, self._cache)

    @functools.cached_property
    def shards(self) -> NDArray[np.void]:
        """The table of shards, of dtype `shard_row`, mapped into memory."""
        return open_shards(self.path, self.description, self._cache)

    @functools.cached_property
    def _reader(self) -> Reader:
        return open_reader(self.path, self._cache)

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("path", "generation", "generations", "_cache")}

    @property
    def description(self) -> Generation:
        """What dataset.json says of this generation."""
        return self.generations[self.generation - 1]

    def __len__(self) -> int:
        return self.description.count

    @property
    def classes(self) -> list[str]:
        return self.description.classes

    @property
    def labels(self) -> NDArray[np.int32]:
        """Class index of every sample (n,), -1 where there is none; a view of the mapped index."""
        return np.asarray(self.rows["label"])

    @property
    def channels(self) -> int:
        """1 if every image is greyscale, 3 if some are in colour, else the number that all images have."""
        return self.description.channels

    @property
    def depth(self) -> Literal[8, 16]:
        """16 if any image has 16 bits a channel, else 8."""
        return self.description.depth

    @property
    def mean(self) -> tuple[float, ...]:
        return tuple(self.description.mean)

    @property
    def std(self) -> tuple[float, ...]:
        return tuple(self.description.std)

    @property
    def fingerprint(self) -> str:
        """Identifies the data of this generation, wherever it lies."""
        return self.description.fingerprint

    def statistics(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and std of the images decoded to `channels`: their own number, or 1 for 3 and 3 for 1.

        Colour statistics weighted by luma stand in for those of greyscale: the mean is right, the std
        an upper bound that is reached when the channels vary together.
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
        """The image file of sample `i`.

        Raises `Corrupt` if its bytes are not the packed ones, `UserError` if they cannot be had.
        """
        row = self.rows[i]
        name, offset, size = self.shard_name(int(row["shard"])), int(row["offset"]), int(row["size"])
        for _ in range(2):
            data = self._read(i, offset, size)
            if zlib.crc32(data) == row["checksum"]:
                return data
            self._reader.forget(name, offset, size)  # it may be the cached copy alone that is wrong
        raise self._changed(i, name)

    def extension(self, i: int) -> str:
        """What the image file of sample `i` ends in, without the dot, e.g. "jpg"."""
        kind, extensions = int(self.rows["kind"][i]), self.description.extensions
        if kind >= len(extensions):
            raise _does_not_fit(join(self.path, INDEX))
        return extensions[kind]

    def key(self, i: int) -> str:
        """The WebDataset key of sample `i`: its path in the source folder or the tar, without extension."""
        row = self.rows[i]
        shard, offset = self.shard_name(int(row["shard"])), int(row["offset"])
        for reach in (HEADERS, LONGEST_HEADERS):
            headers = self._read(i, max(offset - reach, 0), min(offset, reach))
            key = key_before(headers, int(row["key"]))
            if key is not None:
                return key
        raise self._changed(i, shard)

    def ranges(self, indices: NDArray[np.integer[Any]]) -> list[tuple[str, int, int]]:
        """Shard name, offset and size in bytes of every sample's image file."""
        rows = self.rows[indices]
        places = zip(rows["shard"].tolist(), rows["offset"].tolist(), rows["size"].tolist(), strict=True)
        return [(self.shard_name(shard), offset, size) for shard, offset, size in places]

    def name(self, i: int) -> str:
        """What to call sample `i` in a message: the set, the number, and the key if it can be read."""
        try:
            return f"{self.path} {i} ({self.key(i)})"
        except UserError:
            return f"{self.path} {i}"

    @functools.cached_property
    def remote(self) -> bool:
        """Whether shards come over a network (of several, the first is looked at)."""
        return is_remote(join(self.path, self.shard_name(0)))

    def prefetch(self, i: int) -> None:
        """Have the image file of sample `i` brought near in the background, if it is far; never raises."""
        ((name, offset, size),) = self.ranges(np.array([i]))
        self._reader.prefetch(name, offset, size)

    def shard_name(self, number: int) -> str:
        """Relative to the data set, or an absolute path or URL."""
        if number >= len(self.shards):
            raise _does_not_fit(join(self.path, INDEX))
        name: str = self.shards["name"][number].decode(errors="surrogateescape")
        if "\0" in name:
            raise _does_not_fit(join(self.path, SHARDS))
        return name

    def _read(self, i: int, offset: int, size: int) -> bytes:
        number = int(self.rows["shard"][i])
        shard, expected = self.shard_name(number), int(self.shards["bytes"][number])
        if (found := self._reader.size(shard)) != expected:
            raise self._other_size(shard, found, expected)
        return self._reader.read(shard, offset, size)

    def _check_size(self, number: int) -> None:
        shard, expected = self.shard_name(number), int(self.shards["bytes"][number])
        path = join(self.path, shard)
        if is_remote(path):
            return
        try:
            found = Path(path).stat().st_size
        except OSError as error:
            raise from_os_error(error, f"opening shard {path}") from error
        if found != expected:
            raise self._other_size(shard, found, expected)

    def _other_size(self, shard: str, found: int, expected: int) -> UserError:
        return UserError(
            f"shard {join(self.path, shard)} has {found} bytes, its index was made for {expected}; "
            f"run: python -m data_pipeline verify {self.path}, and pack again"
        )

    def _changed(self, i: int, shard: str) -> Corrupt:
        return Corrupt(
            f"shard {join(self.path, shard)} changed since the index was made (sample {i}); "
            f"run: python -m data_pipeline verify {self.path}, and pack again"
        )


def _evenly(count: int) -> list[int]:
    """At most `_CHECKED_SHARDS` of `range(count)`, with the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(count, _CHECKED_SHARDS)).astype(int)).tolist()


def open_rows(path: str, generation: Generation, cache: CacheConfig) -> NDArray[np.void]:
    """Map the rows (n,) of dtype `ROW` into memory; `UserError` if they are not those described."""
    rows = _open_table(join(path, INDEX), generation.count, cache)
    if rows.dtype != ROW:
        raise _does_not_fit(join(path, INDEX))
    return rows


def open_shards(path: str, generation: Generation, cache: CacheConfig) -> NDArray[np.void]:
    """Map the table of shards, of dtype `shard_row`; `UserError` if they are not those described."""
    shards = _open_table(join(path, SHARDS), generation.shards, cache)
    if shards.dtype.names is None or shards.dtype != shard_row(shards.dtype[0].itemsize):
        raise _does_not_fit(join(path, SHARDS))
    return shards


def _open_table(file: str, count: int, cache: CacheConfig) -> NDArray[np.void]:
    try:
        table: NDArray[np.void] = np.lib.format.open_memmap(fetch(file, cache), mode="r")  # runs no pickle
    except OSError as error:
        raise from_os_error(error, f"reading {file}") from error
    except UserError:
        raise
    except Exception as error:  # numpy's parser raises many kinds of exception on a bad header
        raise UserError(f"{file} is damaged ({error}); pack the images again") from None
    if table.ndim != 1 or len(table) < count:  # newer generations have more
        raise _does_not_fit(file)
    return table[:count]


def _does_not_fit(file: str) -> UserError:
    return UserError(f"{file} does not fit the {DESCRIPTION} beside it; pack the images again")
