"""`pack --drop-duplicates` and `--group-duplicates`: leave out near copies, or keep them together."""

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from data_pipeline.packing.listing import Item
from data_pipeline.packing.samples import LeftOut, samples
from data_pipeline.scientific_formats.picture import Reading
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


class Decoding(NamedTuple):
    """How images are decoded to look for near copies."""

    channels: int | None
    rules: PixelRules
    intensity: Intensity
    reading: Reading
    workers: int


class _Task(NamedTuple):
    """Some files whose thumbnails a worker writes."""

    file: Path
    row: int
    """Row of the first in the file of thumbnails."""
    source: Path
    items: DiskList[Item]
    how: Decoding


def without_copies(
    source: Path, items: DiskList[Item], sets: Sequence[Dataset], how: Decoding
) -> tuple[DiskList[Item], Dropped]:
    """Return the images that are no near copies of an image in `sets` or of an image whose key comes before,
    and what was left out.

    Files of several pictures, such as volumes, always stay, and so do files that cannot be decoded. Images of
    one group are no copies of each other. Raises `UserError` if a file cannot be read or has changed since it
    was listed.
    """
    ordered, packed = DiskList(items.ordered(lambda item: item.key)), sum(map(len, sets))
    with _search(source, ordered, sets, how) as search:
        copies = search.copies(of_kept=True, stay=packed)
    rows, relabelled, dropped = [], 0, set()
    named = _at(ordered, {row - packed for copy in copies for row in (copy.row, copy.of)})
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


def in_groups(
    source: Path, items: DiskList[Item], how: Decoding
) -> tuple[DiskList[Item], dict[str, str], str]:
    """Keep near copies, and chains of them, together. Return the images, the groups that are divided like
    another one because they hold near copies of it, and a line that says how many copies there are; "" for
    none.

    Images without a group join that of their copies, or else a new one, which is called like the first image
    and so is on its side of the split. Images without near copies stay as they are. What is compared, and
    what is raised, is as for `without_copies`.
    """
    ordered = DiskList(items.ordered(lambda item: key_hash(item.key)))
    # Imported here: it takes 10 MiB, which other packings do not need.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    with _search(source, ordered, [], how) as search:
        rows = search.pairs.ravel().tolist()
    if not rows:
        return items, {}, ""
    named = _at(ordered, set(rows))
    units = sorted({_unit(item) for item in named.values()})
    number = {unit: i for i, unit in enumerate(units)}
    edges = np.array([number[_unit(named[row])] for row in rows]).reshape(-1, 2)
    graph = coo_array((np.ones(len(edges)), edges.T), shape=(len(units), len(units)))
    chains = connected_components(graph, directed=False)[1].tolist()
    first = {chain: name for chain, (_, name) in reversed(list(zip(chains, units, strict=True)))}
    like = {unit: first[chain] for unit, chain in zip(units, chains, strict=True)}
    joined = DiskList(item._replace(group=item.group or like.get(_unit(item), "")) for item in items)
    groups = {name: other for (is_image, name), other in like.items() if not is_image}
    line = f"\nkept together: {len(named)} images that are near copies of others, in {len(first)} chains"
    return joined, groups, line


def _unit(item: Item) -> tuple[bool, str]:
    """Return the name of an image's group, or its own key, and which it is; groups come first."""
    return not item.group, item.group or item.key


@contextmanager
def _search(
    source: Path, items: DiskList[Item], sets: Sequence[Dataset], how: Decoding
) -> Iterator[NearCopies]:
    """Look for near copies among the images of the sets and then `items`; yield what is found."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "thumbnails.npy"
        packed = sum(map(len, sets))
        thumbnails.of_sets(sets, file, how.workers, more=len(items))
        tasks = []
        for start in range(0, len(items), thumbnails.AT_ONCE):
            some = items.part(start, min(start + thumbnails.AT_ONCE, len(items)))
            tasks.append(_Task(file, packed + start, source, some, how))
        pool.run(_write_task, tasks, how.workers, "looking for copies", len(items))
        of_items = (key_hash(item.group) if item.group else 0 for item in items)
        groups = np.fromiter(of_items, np.uint64, len(items))
        yield NearCopies(file, np.concatenate([*map(thumbnails.groups_of, sets), groups]))


def _at(items: DiskList[Item], places: set[int]) -> dict[int, Item]:
    """Return the images at some places of a list."""
    return {i: item for i, item in enumerate(items) if i in places}


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
        how = task.how
        pictures = samples(task.source, image, how.channels, how.rules, how.intensity, how.reading, PLAIN)
        first, *more = itertools.islice(pictures, 2)
    except MemoryError as error:
        raise no_memory(item.path, error) from None
    except ValueError:  # also where there is no picture at all
        return np.zeros((SIDE, SIDE), np.int8)
    if more or isinstance(first, LeftOut) or first.key != item.key:
        return np.zeros((SIDE, SIDE), np.int8)
    return thumbnails.thumbnail(first.pixels)
