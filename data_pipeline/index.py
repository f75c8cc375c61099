"""A packed data set on disk: WebDataset shards, and beside them where each sample lies.

shard-000000.tar …   <key>.<ext> image bytes, <key>.cls class index, <key>.json other columns
index.npy            one row a sample, memory-mapped, in the order of shards and offsets
dataset.json         `Description`
"""

import functools
import hashlib
import os
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from data_pipeline.errors import UserError, from_os_error

FORMAT = 1
INDEX = "index.npy"
DESCRIPTION = "dataset.json"
ROW = np.dtype(
    [
        ("shard", "<u4"),
        ("offset", "<u8"),
        ("size", "<u4"),
        ("label", "<i4"),
        ("width", "<u2"),
        ("height", "<u2"),
        ("checksum", "<u4"),
    ]
)
"""Offset and size of the image's bytes in its shard, class index or -1, pixels, CRC-32 of the bytes."""

_OPEN_SHARDS = 64
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's conversion to greyscale


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True)


class Shard(_Record):
    name: str
    bytes: int
    samples: int
    sha256: str


class Extent(_Record):
    """Of one side of the images, in pixels."""

    min: int
    median: int
    max: int


class Description(_Record):
    """What dataset.json says."""

    format: int = FORMAT
    count: int
    """Samples."""
    classes: list[str]
    """Class names in the order of their index; empty if the set is unlabelled."""
    class_counts: list[int]
    """Samples a class."""
    channels: int
    """1 if every image is greyscale, else 3."""
    mean: list[float]
    """Mean of all pixels a channel, where 0 is black and 1 is white."""
    std: list[float]
    """Standard deviation of all pixels a channel, on the same scale."""
    width: Extent
    height: Extent
    shards: list[Shard]
    skipped: int
    """Files left out because they were no readable images; skipped.txt names them."""
    plan: str
    """Fingerprint of what was to be packed: files, sizes, labels and options."""


def describe(path: Path) -> Description:
    """Read dataset.json; `UserError` if `path` is no packed data set."""
    file = path / DESCRIPTION
    try:
        text = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{path} is not a packed data set ({DESCRIPTION} is missing); {_advice(path)}"
        ) from None
    except OSError as error:
        raise from_os_error(error, f"reading {file}") from error
    try:
        description = Description.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{'.'.join(map(str, first['loc']))} {first['msg']}".strip()
        raise UserError(f"{file} is damaged or of another version ({what}); pack the images again") from None
    if description.format != FORMAT:
        raise UserError(
            f"{file} has format {description.format}, this version reads {FORMAT}; pack the images again"
        )
    return description


def _advice(path: Path) -> str:
    if not path.exists():
        return "there is no such folder, check the path"
    if sets := subsets(path):
        return f"it holds the sets {', '.join(s.name for s in sets)}: name one of them, e.g. {sets[0]}"
    return f"make one with: python -m data_pipeline pack IMAGES {path}"


def subsets(path: Path) -> list[Path]:
    """The data sets that a packing with a split has made in `path`."""
    return sorted(file.parent for file in path.glob(f"*/{DESCRIPTION}")) if path.is_dir() else []


def open_index(path: Path, description: Description) -> NDArray[np.void]:
    """Map the rows (n,) of dtype `ROW` into memory; `UserError` if they are not those described."""
    file = path / INDEX
    try:
        rows: NDArray[np.void] = np.load(file, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise from_os_error(error, f"reading {file}") from error
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}); pack the images again") from None
    if rows.dtype != ROW or rows.shape != (description.count,):
        raise UserError(f"{file} does not fit the {DESCRIPTION} beside it; pack the images again")
    return rows


class Dataset:
    """A packed data set, opened for reading any sample; cheap to open, to pickle and to fork.

    Raises `UserError` if it is none, or if a shard is missing or has another size than it was packed
    with. `len()` is the number of samples.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.description = describe(self.path)
        for shard in self.description.shards:
            _check_size(self.path / shard.name, shard.bytes)
        self.rows = open_index(self.path, self.description)
        # Positional reads through a bounded number of handles: forked workers may share them.
        self._shard: Callable[[int], BinaryIO] = functools.lru_cache(_OPEN_SHARDS)(self._open_shard)

    def _open_shard(self, number: int) -> BinaryIO:
        file = self.path / self.description.shards[number].name
        try:
            return file.open("rb")
        except OSError as error:
            raise from_os_error(error, f"reading shard {file}") from error

    def __reduce__(self) -> tuple[type["Dataset"], tuple[Path]]:
        return Dataset, (self.path,)

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
    def mean(self) -> tuple[float, ...]:
        return tuple(self.description.mean)

    @property
    def std(self) -> tuple[float, ...]:
        return tuple(self.description.std)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Identifies the data, wherever it lies: dataset.json holds the SHA-256 of every shard."""
        return hashlib.sha256(self.description.model_dump_json().encode()).hexdigest()[:16]

    def statistics(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and std of the images decoded to `channels` (1 or 3).

        Colour statistics weighted by luma stand in for those of greyscale: the mean is right, the std
        an upper bound that is reached when the channels vary together.
        """
        if channels == len(self.mean):
            return self.mean, self.std
        if channels == 3:
            return self.mean * 3, self.std * 3
        mean, std = (sum(w * x for w, x in zip(_LUMA, s, strict=True)) for s in (self.mean, self.std))
        return (mean,), (std,)

    def read(self, i: int) -> bytes:
        """The image file of sample `i`; `UserError` if its checksum is not that of the packed one."""
        row = self.rows[i]
        shard = self._shard(int(row["shard"]))
        try:
            data = os.pread(shard.fileno(), int(row["size"]), int(row["offset"]))
        except OSError as error:
            raise from_os_error(error, f"reading shard {shard.name}") from error
        if zlib.crc32(data) != row["checksum"]:
            raise self._changed(shard.name, i)
        return data

    def key(self, i: int) -> str:
        """The WebDataset key of sample `i`: its path in the source folder, without extension."""
        row = self.rows[i]
        shard = self._shard(int(row["shard"])).name
        try:
            return _member_name(Path(shard), int(row["offset"])).rpartition(".")[0]
        except (OSError, tarfile.TarError, StopIteration):
            raise self._changed(shard, i) from None

    def _changed(self, shard: str, i: int) -> UserError:
        return UserError(
            f"shard {shard} changed since the index was made (sample {i}); "
            f"run: python -m data_pipeline verify {self.path}, and pack again"
        )


def _member_name(shard: Path, offset: int) -> str:
    """Name of the tar member whose content begins at `offset`: from the header before it, if it fits."""
    with shard.open("rb") as file:
        file.seek(offset - tarfile.BLOCKSIZE)
        name = tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape").name
        # Long names are cut there, letters beyond ASCII may be "?"; then the whole file is walked.
        if len(os.fsencode(name)) < tarfile.LENGTH_NAME and "?" not in name:
            return name
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            return next(member.name for member in tar if member.offset_data == offset)


def _check_size(shard: Path, expected: int) -> None:
    try:
        found = shard.stat().st_size
    except OSError as error:
        raise from_os_error(error, f"opening shard {shard}") from error
    if found != expected:
        raise UserError(
            f"shard {shard} has {found} bytes, its index was made for {expected}; "
            f"run: python -m data_pipeline verify {shard.parent}, and pack again"
        )
