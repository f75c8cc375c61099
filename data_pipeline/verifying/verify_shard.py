"""Compare one shard with the index: in one pass, or where the tar is damaged, image by image."""

import functools
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline import pool
from data_pipeline.dataset.description import Generation, describe
from data_pipeline.dataset.index import HEADERS, key_before, key_hash, key_prefix
from data_pipeline.dataset.table_files import ROW, SHARDS, open_rows, open_shards
from data_pipeline.existing_tars import tar_labels
from data_pipeline.storage import tar_files
from data_pipeline.storage.cache import CacheConfig
from data_pipeline.storage.reader import join
from data_pipeline.storage.tar_reader import Damaged, Member, Tar, key_and_extension, printable, stem
from isotorus.errors import UserError

_NAMED = 3  # images that a message names

_LOST = "are lost or damaged"
_CHECKSUM = "have another checksum"
_PLACE = "are not where the index says"
_KEY = "have another key"
_KIND = "have another extension"
_LABEL = "have another label"


@dataclass(frozen=True)
class Task:
    """A shard to check."""

    path: str
    """Folder or URL of the data set."""
    number: int
    """Row of the shard in the shard table."""
    has_index: bool
    """Whether the index of the data set can be read."""
    tables: int = 0
    """Number of the tables that are compared, see `Generation.tables`."""


def verify_shard(task: Task) -> list[str]:
    """Return a list with one line about the damage of a shard or of its table rows; empty if neither is
    damaged.

    Runs in a worker of `pool.run` and reports samples to the progress bar.
    """
    generations, shards = _opened(task.path, task.tables)
    shard = shards[task.number]
    name = bytes(shard["name"]).decode(errors="surrogateescape")
    file = join(task.path, name)
    first, samples = int(shard["first"]), int(shard["samples"])
    rows = (
        np.array(_index(task.path, task.tables)[first : first + samples])
        if task.has_index
        else np.empty(0, ROW)
    )
    packed_in = next(g for g in generations if task.number < g.shards)
    comparison = _Comparison(
        rows, first, generations[-1], packed_in, key_prefix(packed_in.tar_names_in_keys, name)
    )
    if "\0" in file:
        return [f"{join(task.path, SHARDS)} names a shard that can be none: {tar_files.shown(file)}"]
    try:
        tar, broken = _read(file, comparison)
    except UserError as error:
        return [str(error)]
    except FileNotFoundError:
        return [f"{tar_files.shown(file)} is missing"]
    except OSError as error:
        return [f"{tar_files.shown(file)} cannot be read ({error.strerror or error})"]
    finally:
        pool.count(samples - comparison.counted)
    wrong = [broken] if broken else []
    if tar.size != shard["bytes"]:
        wrong.append(f"has {tar.size} bytes instead of {shard['bytes']}")
    wrong += comparison.faults()
    if (rows["shard"] != task.number).any() or (np.diff(rows["offset"].astype(np.int64)) <= 0).any():
        wrong.append("rows point to another shard, or are out of order")
    if not broken and tar.sha256.encode() == shard["sha256"]:
        return (
            [f"{task.path}: the tables do not fit {tar_files.shown(file)}: {'; '.join(wrong)}"]
            if wrong
            else []
        )
    what = "; ".join(wrong) or "something beside images and labels changed"
    return [f"{tar_files.shown(file)} is not what was published: {what}"]


def _read(file: str, comparison: "_Comparison") -> tuple[Tar, str]:
    """Compare a whole shard with the index; return the tar, and a message where it is damaged ("" if it is
    not).
    """
    with tar_files.open_stream(file) as stream:
        tar = Tar(stream, tar_files.size_of(file))
        try:
            comparison.walk(tar)
        except Damaged as error:
            comparison.jump(stream, tar.size)
            return tar, f"{error}{comparison.reached()}"
    return tar, ""


@functools.lru_cache(1)
def _opened(path: str, tables: int) -> tuple[list[Generation], NDArray[np.void]]:
    """Return the generations with these tables, and their shard table; kept for the next shard."""
    generations = [g for g in describe(path, CacheConfig()).generations if g.tables == tables]
    return generations, open_shards(path, generations[-1], CacheConfig())


@functools.lru_cache(1)
def _index(path: str, tables: int) -> NDArray[np.void]:
    """Return the index with the number `tables`; kept for the next shard."""
    return open_rows(path, _opened(path, tables)[0][-1], CacheConfig())


class _Comparison:
    """Compares the rows of a shard in the index with the files in the tar, and collects the differences."""

    def __init__(
        self,
        rows: NDArray[np.void],
        first: int,
        generation: Generation,
        packed_in: Generation,
        prefix: str,
    ) -> None:
        self.counted = 0
        """Samples that were reported to the progress bar."""
        self._rows, self._first, self._generation = rows, first, generation
        self._label_field, self._missing = packed_in.label_field, packed_in.missing
        self._label_ending = tar_labels.ending_of(packed_in.label_field, packed_in.label_extension)
        self._prefix = prefix
        self._are_values = tar_labels.are_values(generation.classes)
        self._row_at = {offset: i for i, offset in enumerate(rows["offset"].tolist())}
        self._keys: dict[int, str] = {}  # by row, for the images that were read
        self._labels: dict[str, int | None] = {}  # class index by stem of the name; None: no known class
        self._stems: dict[str, str] = {}  # of images, by key, where it is longer than the key
        self._wrong: dict[str, list[str]] = {}  # names of samples by kind of damage

    def walk(self, tar: Tar) -> None:
        """Compare all files of the tar; raise `Damaged` where it cannot be read further."""
        number = {name: i for i, name in enumerate(self._generation.classes)}
        for member in tar:
            split = key_and_extension(member.name)
            if split is None:
                continue
            i = self._row_at.get(member.offset)
            if i is not None and member.size == self._rows["size"][i] and not member.link:
                self._compare(i, *split, tar.read())
            elif (labelled := tar_labels.label_stem(*split, self._label_ending)) is not None:
                self._labels[labelled] = self._label(member, tar, number)
        for i, key in self._keys.items():
            if not self._is_label(key, int(self._rows["label"][i])):
                self._add(_LABEL, printable(key))
        for i in range(len(self._rows)):
            if i not in self._keys:
                self._add(_PLACE, f"row {self._first + i}")

    def reached(self) -> str:
        """Return a phrase with the last sample that was read."""
        return f", after the sample {printable(list(self._keys.values())[-1])}" if self._keys else ""

    def jump(self, stream: io.BufferedReader, size: int) -> None:
        """Check the images that `walk` did not reach, at the places that the index gives."""
        for i in np.argsort(self._rows["offset"]).tolist():
            if i in self._keys:
                continue
            self._count()
            offset, length = int(self._rows["offset"][i]), int(self._rows["size"][i])
            data = b""
            if offset + length <= size:
                stream.seek(offset)
                data = stream.read(length)
            if zlib.crc32(data) != self._rows["checksum"][i] or len(data) != length:
                self._add(_LOST, self._name(i, stream))

    def faults(self) -> Iterator[str]:
        """Yield a phrase for each kind of damage."""
        for what, names in self._wrong.items():
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            yield f"{len(names)} of {len(self._rows)} images {what}: {', '.join(names[:_NAMED])}{more}"

    def _compare(self, i: int, key: str, extension: str, data: bytes) -> None:
        """Compare one image with row `i` of the index."""
        self._count()
        row = self._rows[i]
        self._keys[i] = key
        if "." in extension:
            self._stems[key] = stem(key, extension)
        if zlib.crc32(data) != row["checksum"]:
            self._add(_CHECKSUM, printable(key))
        if key_hash(self._prefix + key) != row["key"]:
            self._add(_KEY, printable(key))
        extensions = self._generation.extensions
        if row["kind"] >= len(extensions) or extensions[row["kind"]] != extension.rpartition(".")[2]:
            self._add(_KIND, printable(key))

    def _is_label(self, key: str, label: int) -> bool:
        """Return whether a class index is that of a sample, by its file `key.cls` or else `key.left.cls`."""
        if key in self._labels or key not in self._stems:
            return self._labels.get(key, -1) == label
        # Earlier versions took no label from files of longer names.
        return label in (-1, self._labels.get(self._stems[key], -1))

    def _label(self, member: Member, tar: Tar, number: dict[str, int]) -> int | None:
        """Return the class index in a label file: -1 for no label, None if it is not one of the classes."""
        if member.size > tar_labels.LARGEST:
            return None
        try:
            label = tar_labels.parse_label(tar.read(), self._label_field, self._missing)
        except ValueError:
            return None
        if not isinstance(label, str):
            known = number.get(str(label)) if self._are_values else None
            return -1 if label is None else label if known is None else known
        if label not in number and (name := tar_labels.respelled([label], list(number))[label]) in number:
            number[label] = number[name]
        return number.get(label)

    def _name(self, i: int, stream: io.BufferedReader) -> str:
        """Return the key of row `i` if it can be read from the headers before the image, else the row's
        number.
        """
        offset = int(self._rows["offset"][i])
        start = max(offset - HEADERS, 0)
        stream.seek(start)
        found = key_before(stream.read(offset - start), int(self._rows["key"][i]), self._prefix)
        return f"row {self._first + i}" if found is None else printable(found[0])

    def _add(self, what: str, name: str) -> None:
        """Record a damage of a sample."""
        self._wrong.setdefault(what, []).append(name)

    def _count(self) -> None:
        """Report a sample to the progress bar."""
        self.counted += 1
        pool.count()
