"""`pack --drop-duplicates`: leave out images that are near copies of others."""

import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipeline import pool
from data_pipeline.dataset.description import PLAIN
from data_pipeline.dataset.index import Dataset, key_hash
from data_pipeline.dataset.near_copies import thumbnails
from data_pipeline.dataset.near_copies.pairs import NearCopies
from data_pipeline.dataset.near_copies.thumbnails import SIDE, Thumbnails
from data_pipeline.decoders.intensity import Intensity
from data_pipeline.decoders.pixels import PixelRules
from data_pipeline.field_formats.picture import Reading
from data_pipeline.packing.listing import Item
from data_pipeline.packing.samples import LeftOut, samples
from data_pipeline.storage.disk_list import DiskList
from isotorus import jsonl
from isotorus.errors import no_memory

DUPLICATES = "duplicates.jsonl"
"""The list of images that were left out as near copies, beside skipped.txt."""


@dataclass(frozen=True)
class Dropped:
    """The images that were left out as near copies."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    """A row of duplicates.jsonl for each."""
    relabelled: int = 0
    """How many of them have another label than the image that stays."""

    def write(self, dest: Path) -> None:
        """Add the rows to the list in `dest`, in which each image has one row."""
        if self.rows:
            rows = {row["image"]: row for row in [*jsonl.read(dest / DUPLICATES), *self.rows]}
            jsonl.replace(dest / DUPLICATES, (rows[name] for name in sorted(rows)))

    def line(self, dest: Path) -> str:
        """Return a line that says how many there are; "" for none."""
        if not self.rows:
            return ""
        labels = f" ({self.relabelled} of them with another label)" if self.relabelled else ""
        copies = "near copy" if len(self.rows) == 1 else "near copies"
        return f"\nleft out: {len(self.rows)} {copies} of images that stay{labels}, see {dest / DUPLICATES}"


class _Task(NamedTuple):
    """Some files whose thumbnails a worker writes."""

    file: Path
    row: int
    """Row of the first in the file of thumbnails."""
    source: Path
    items: DiskList[Item]
    rules: PixelRules
    intensity: Intensity
    reading: Reading


def without_copies(
    source: Path,
    items: DiskList[Item],
    sets: Sequence[Dataset],
    rules: PixelRules,
    intensity: Intensity,
    reading: Reading,
    workers: int,
) -> tuple[DiskList[Item], Dropped]:
    """Return the images that are no near copies of an image in `sets` or of an image whose key comes before,
    and what was left out.

    Files of several pictures, such as volumes, always stay, and so do files that cannot be decoded. Images of
    one group are no copies of each other. Raises `UserError` if a file cannot be read or has changed since it
    was listed.
    """
    ordered = DiskList(items.ordered(lambda item: item.key))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "thumbnails.npy"
        packed = sum(map(len, sets))
        thumbnails.of_sets(sets, file, workers, more=len(ordered))
        tasks = []
        for start in range(0, len(ordered), thumbnails.AT_ONCE):
            some = ordered.part(start, min(start + thumbnails.AT_ONCE, len(ordered)))
            tasks.append(_Task(file, packed + start, source, some, rules, intensity, reading))
        pool.run(_write_task, tasks, workers, "looking for copies", len(ordered))
        of_items = (key_hash(item.group) if item.group else 0 for item in ordered)
        groups = np.fromiter(of_items, np.uint64, len(ordered))
        groups = np.concatenate([*map(thumbnails.groups_of, sets), groups])
        copies = NearCopies(file, groups).copies(of_kept=True, stay=packed)
    rows, relabelled, dropped = [], 0, set()
    wanted = {row - packed for copy in copies for row in (copy.row, copy.of)}
    named = {i: item for i, item in enumerate(ordered) if i in wanted}
    for copy in copies:
        item = named[copy.row - packed]
        dropped.add(item.path)
        if copy.of < packed:
            name = _key(sets, copy.of)
        else:
            other = named[copy.of - packed]
            name = other.path
            relabelled += item.label != other.label
        rows.append({"image": item.path, "copy_of": name, "bits": copy.bits, "correlation": copy.correlation})
    return DiskList(item for item in items if item.path not in dropped), Dropped(rows, relabelled)


def _key(sets: Sequence[Dataset], row: int) -> str:
    """Return the key of a packed sample; `row` counts over all sets."""
    for dataset in sets:
        if row < len(dataset):
            return dataset.key(row)
        row -= len(dataset)
    raise AssertionError(row)


def _write_task(task: _Task) -> None:
    """Write the thumbnails of some files; runs in a worker of `pool.run`."""
    images = []
    for item in task.items:
        pool.count()
        images.append(_thumbnail(task, item))
    thumbnails.write(task.file, task.row, images)


def _thumbnail(task: _Task, item: Item) -> Thumbnails:
    """Return the thumbnail of a file; zero for a file of several pictures, or one that cannot be decoded."""
    try:
        image = item._replace(mask=None)
        pictures = samples(task.source, image, None, task.rules, task.intensity, task.reading, PLAIN)
        first, *more = itertools.islice(pictures, 2)
    except MemoryError as error:
        raise no_memory(item.path, error) from None
    except ValueError:  # also where there is no picture at all
        return np.zeros((SIDE, SIDE), np.int8)
    if more or isinstance(first, LeftOut) or first.key != item.key:
        return np.zeros((SIDE, SIDE), np.int8)
    return thumbnails.thumbnail(first.pixels)
