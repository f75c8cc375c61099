"""Find the image files that were changed, added or removed since a data set was packed.

A file is unchanged if its size and time of modification are those that the data set records. If only the time
differs, or the data set records none, the file's CRC-32 is compared with that of the packed image: files that
were only copied or touched are unchanged.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline import pool
from data_pipeline.dataset import files, modified
from data_pipeline.dataset.description import SKIPPED
from data_pipeline.dataset.index import Dataset, key_hash
from data_pipeline.dataset_writer.staging import STAGING, State
from data_pipeline.packing import item_bytes
from data_pipeline.packing.listing import MOST_NAMED, Item, Named
from data_pipeline.storage.disk_list import DiskList
from isotorus.errors import UserError, from_os_error, one_line

_AT_ONCE = 256  # files that a worker compares in one task


@dataclass(frozen=True)
class Changes:
    """Differences between the files in a folder and a data set that was packed from it."""

    changed: list[str]
    """Paths of packed files that have other bytes now."""
    new: Named
    """Files that were neither packed nor left out."""
    gone: int
    """Number of packed images whose files are not listed now."""
    first_gone: list[str]
    """Keys of some of them."""
    repaired: Named
    """Files that were left out, and modified after that."""

    def __str__(self) -> str:
        """Say in a phrase how many files differ, and name the first; "" if none do."""
        phrases = [
            _phrase(len(self.changed), "changed", self.changed),
            _phrase(self.gone, "no longer there", self.first_gone),
            _phrase(self.new.count, "new", self.new.first),
        ]
        return ", ".join(filter(None, phrases))


@dataclass(frozen=True)
class _Task:
    """Files to compare with the checksums of packed images."""

    source: Path
    items: DiskList[Item]
    checksums: NDArray[np.uint32]


def compare(source: Path, dest: Path, items: DiskList[Item], sets: list[Dataset], workers: int) -> Changes:
    """Compare the files `items` in `source` with the data sets `sets` in `dest`.

    The times of files that turn out to be unchanged are recorded, so that the next comparison is quick.
    Raises `UserError` if a file cannot be read.
    """
    packed = np.concatenate([files.read(dataset) for dataset in sets])
    keys, sizes, checksums = packed["key"], packed["size"], packed["checksum"]
    times = np.concatenate([modified.read(Path(dataset.path), dataset.description) for dataset in sets])
    hashes = np.fromiter((key_hash(item.key) for item in items), np.uint64, len(items))
    order = np.argsort(keys, kind="stable")
    starts = np.searchsorted(keys, hashes, sorter=order)
    ends = np.searchsorted(keys, hashes, side="right", sorter=order)
    rows = order[starts.clip(max=len(keys) - 1)]
    known = keys[rows] == hashes

    changed: list[str] = []
    doubtful, places = DiskList[Item](), array("q")  # files with another time, and their places in `items`
    for place, item in enumerate(items):
        row = rows[place]
        if not known[place]:
            continue
        if item.size != sizes[row]:
            changed.append(item.path)
        elif item.modified != times[row]:
            doubtful.append(item)
            places.append(place)
    differing = set(_other_bytes(source, doubtful, checksums[rows[np.array(places, np.int64)]], workers))
    for place, item in zip(places, doubtful, strict=True):
        if item.path not in differing:
            times[order[starts[place] : ends[place]]] = item.modified  # all samples of one file
    if len(doubtful) > len(differing):
        _record(sets, times)

    each, first = np.unique(keys, return_index=True)
    gone = np.sort(first[~np.isin(each, hashes)])
    left_out, when = _left_out(dest)
    new, repaired = Named(), Named()
    for item, found in zip(items, known, strict=True):
        is_left_out = one_line(item.path) in left_out
        if not found and not is_left_out:
            new.add(item.path)
        elif not found and item.modified > when:
            repaired.add(item.path)
    return Changes(
        changed=sorted([*changed, *differing]),
        new=new,
        gone=len(gone),
        first_gone=[_key(sets, row) for row in gone[:MOST_NAMED].tolist()],
        repaired=repaired,
    )


def refuse_changed(dest: Path, changes: Changes) -> None:
    """Raise `UserError` if packed files have other bytes now."""
    if changes.changed:
        which = _phrase(len(changes.changed), "changed", changes.changed)
        raise UserError(
            f"{which} since they were packed into {dest}; "
            "packed images are never replaced, also not with --append: pack into another folder, or bring "
            "the old files back"
        )


def gone_line(changes: Changes) -> str:
    """Return a line about packed images whose files are not there now; "" if there are none."""
    if not changes.gone:
        return ""
    which = _phrase(changes.gone, "no longer there", changes.first_gone)
    return f"note: {which}; the packed images stay, also where a file was renamed and is packed again"


def repaired_line(changes: Changes) -> str:
    """Return a line about files that were left out and have changed since; "" if there are none."""
    if not changes.repaired.count:
        return ""
    which = _phrase(changes.repaired.count, "changed", changes.repaired.first)
    return f"{which} after being left out; to try them again: the same command with --append"


def _phrase(count: int, what: str, first: list[str]) -> str:
    """Return a phrase such as "5 files changed (a.png, b.png, c.png and 2 more)"; "" for no files."""
    if not count:
        return ""
    named = ", ".join(map(one_line, first[:MOST_NAMED]))
    more = f" and {count - MOST_NAMED} more" if count > MOST_NAMED else ""
    verb = "" if what == "changed" else ("is " if count == 1 else "are ")
    return f"{count} file{'s' * (count > 1)} {verb}{what} ({named}{more})"


def _other_bytes(
    source: Path, doubtful: DiskList[Item], checksums: NDArray[np.uint32], workers: int
) -> Iterator[str]:
    """Yield the paths of files whose bytes do not have the checksums beside them."""
    tasks = []
    for start in range(0, len(doubtful), _AT_ONCE):
        stop = min(start + _AT_ONCE, len(doubtful))
        tasks.append(_Task(source, doubtful.part(start, stop), checksums[start:stop]))
    if tasks:
        for paths in pool.run(_differing, tasks, workers, "comparing", len(doubtful)):
            yield from paths


def _differing(task: _Task) -> list[str]:
    """Return the paths of files that have another checksum; runs in a worker of `pool.run`."""
    differing = []
    for item, checksum in zip(task.items, task.checksums, strict=True):
        pool.count()
        try:
            _, found = item_bytes.size_and_checksum(task.source / item.path)
        except OSError as error:
            raise from_os_error(error, "comparing the images with the packed ones") from error
        if found != checksum:
            differing.append(item.path)
    return differing


def _record(sets: list[Dataset], times: NDArray[np.int64]) -> None:
    """Record the times of the files, if the newest generation is open and its folder can be written."""
    if any(dataset.generation < len(dataset.generations) for dataset in sets):
        return
    start = 0
    for dataset in sets:
        try:
            file = Path(dataset.path) / dataset.description.table(modified.MODIFIED)
            modified.write(file, times[start : start + len(dataset)])
        except OSError:  # the record only saves time
            return
        start += len(dataset)


def _left_out(dest: Path) -> tuple[set[str], int]:
    """Return the paths in skipped.txt, and when it was written, in nanoseconds since the epoch."""
    file = dest / SKIPPED
    if not file.exists():
        return set(), 0
    return {line.partition("\t")[0] for line in file.read_text().splitlines()}, file.stat().st_mtime_ns


def _key(sets: list[Dataset], row: int) -> str:
    """Return the key of a sample, which is its path without the extension; `row` counts over all sets."""
    for dataset in sets:
        if row < len(dataset):
            return dataset.key(row)
        row -= len(dataset)
    raise AssertionError(row)


def refuse_changed_sets(dest: Path, begun: State | None) -> None:
    """Raise `UserError` if a set was changed by itself since the packing `begun`, which would undo that."""
    for name, base in begun.bases.items() if begun else ():
        newer = Dataset(dest / name).generations[base.generation :]
        if any(begun and generation.plan != begun.plan for generation in newer):
            raise UserError(
                f"{dest / name} was changed since the packing in {dest / STAGING} began; delete "
                f"{dest / STAGING}, then run the same command again"
            )
