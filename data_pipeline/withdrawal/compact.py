"""`isotorus compact`: delete the bytes of removed images, and the generations that held them.

It first writes the shards that hold such bytes again, under new names, then tables for all shards, then
dataset.json, by which the new files become the data set. Only then it deletes the old files. So the data set
is whole at any moment, and after a kill the same command continues.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline import pool
from data_pipeline.dataset import files, modified, spacing
from data_pipeline.dataset.description import (
    DESCRIPTION,
    Description,
    Former,
    Generation,
    IndexCounts,
    describe,
    table_name,
)
from data_pipeline.dataset.files import FILES
from data_pipeline.dataset.index import Dataset
from data_pipeline.dataset.modified import MODIFIED
from data_pipeline.dataset.spacing import SPACING
from data_pipeline.dataset.table_files import GROUPS, INDEX, SHARDS, families, open_shards, shard_row
from data_pipeline.dataset_writer.write_tables import (
    ROWS_AT_ONCE,
    Tables,
    write_description,
    write_tables,
)
from data_pipeline.storage.cache import CacheConfig
from data_pipeline.withdrawal.rewrite import PACKED, Rewritten, Task, is_packed, rewrite
from isotorus.errors import UserError
from isotorus.files import remove_leftovers, sync

_TABLES = (INDEX, SHARDS, GROUPS, FILES, SPACING, MODIFIED)


class Compacted(NamedTuple):
    """What `compact` has done."""

    shards: int
    """Number of shards that were written again."""
    deleted: int
    """Number of shards that were deleted."""
    generations: int
    """Number of older generations that were dropped."""


def compact(folder: Path, workers: int) -> Compacted:
    """Delete from a local data set what was removed from it.

    Raises `UserError` if the shards are not those of `pack`, or if one is damaged; then nothing is changed.
    """
    description = describe(str(folder), CacheConfig())
    newest = description.generations[-1]
    written, dropped = 0, 0
    if newest.tables:
        holding = _holding(folder, description.generations)
        _refuse_others(folder, description.generations, holding)
        written, dropped = len(holding), len(description.generations) - 1
        description = _publish(folder, description, holding, workers)
    deleted = _clean(folder, description.generations[-1]) if newest.removed else 0
    return Compacted(written, deleted, dropped)


def _holding(folder: Path, generations: list[Generation]) -> list[int]:
    """Return the rows in the newest shard table of the shards that hold removed samples."""
    before: dict[bytes, int] = {}
    for family in families(generations):
        table = open_shards(str(folder), family[-1], CacheConfig())
        for name, samples in zip(table["name"].tolist(), table["samples"].tolist(), strict=True):
            before[name] = max(before.get(name, 0), samples)
    newest = list(zip(table["name"].tolist(), table["samples"].tolist(), strict=True))
    return [number for number, (name, samples) in enumerate(newest) if samples < before[name]]


def _refuse_others(folder: Path, generations: list[Generation], holding: list[int]) -> None:
    """Raise `UserError` if the shards are not files that `pack` has written into `folder`."""
    names = {
        name.decode(errors="surrogateescape")
        for family in families(generations)
        for name in open_shards(str(folder), family[-1], CacheConfig())["name"].tolist()
    }
    others = [
        name
        for name in sorted(names)
        if not PACKED.fullmatch(name) or (folder / name).is_symlink() or not is_packed(folder / name)
    ]
    if others:
        raise UserError(
            f"{folder} points to tars that isotorus pack did not write ({others[0]}), which compact does not "
            "change; the data set leaves the images out already: delete them from the tars, then make a new "
            "set with isotorus index TARS NEW_FOLDER"
        )


def _publish(folder: Path, description: Description, holding: list[int], workers: int) -> Description:
    """Write the shards again and publish them as the only generation; return the new dataset.json."""
    dataset = Dataset(folder)
    first, samples = dataset.shards["first"], dataset.shards["samples"]
    tasks = []
    for number in holding:
        rows = dataset.rows[int(first[number]) : int(first[number] + samples[number])]
        sha256 = dataset.shards["sha256"][number].decode()
        name = dataset.shard_name(number)
        tasks.append(Task(folder, name, sha256, np.array(rows["key"]), np.array(rows["offset"])))
    images = sum(len(task.keys) for task in tasks)
    rewritten = dict(zip(holding, pool.run(rewrite, tasks, workers, "compacting", images), strict=True))
    sync(folder)
    newest, has_times = dataset.description, (folder / dataset.description.table(MODIFIED)).exists()
    tables = Tables(
        _shards(dataset, rewritten),
        dataset.groups,
        modified.read(folder, newest) if has_times else None,
        None if newest.reading is None else files.read(dataset),
        spacing.read(dataset),
    )
    older = [*description.generations[:-1], newest] if rewritten else description.generations[:-1]
    former = [Former(fingerprint=g.fingerprint, count=g.count, bytes=g.bytes) for g in older]
    aside = max(generation.tables for generation in description.generations) + 1
    # A kill must not damage the tables in use. So the new ones are published under a number of their own
    # first, and only then under the names without a number, which a new set has.
    for number in (aside, 0):
        counts = IndexCounts(len(newest.classes), len(newest.extensions))
        write_tables(folder, number, _rows(dataset, rewritten), tables, counts)
        generation = newest.model_copy(
            update={
                "tables": number,
                "bytes": int(tables.shards["bytes"].sum()),
                "fingerprint": counts.fingerprint(
                    newest.classes,
                    newest.extensions,
                    newest.channels,
                    newest.depth,
                    tables.shards,
                    newest.pixel_rules,
                    newest.intensity,
                ),
            }
        )
        published = Description(generations=[generation], former=[*description.former, *former])
        write_description(folder, published)
    return published


def _shards(dataset: Dataset, rewritten: dict[int, Rewritten]) -> NDArray[np.void]:
    """Return the shard table with what was written again."""
    longest = max([dataset.shards.dtype["name"].itemsize, *(len(new.name) for new in rewritten.values())])
    table = np.array(dataset.shards).astype(shard_row(longest))
    for number, new in rewritten.items():
        row = table[number]
        row["name"], row["bytes"], row["sha256"] = new.name.encode(), new.bytes, new.sha256.encode()
    return table


def _rows(dataset: Dataset, rewritten: dict[int, Rewritten]) -> Iterator[NDArray[np.void]]:
    """Yield the rows of the index with the new offsets, in pieces."""
    firsts = {number: int(dataset.shards["first"][number]) for number in rewritten}
    for start in range(0, len(dataset), ROWS_AT_ONCE):
        rows = np.array(dataset.rows[start : start + ROWS_AT_ONCE])
        for number in np.unique(rows["shard"]).tolist():
            if number in rewritten:
                mine = np.flatnonzero(rows["shard"] == number)
                rows["offset"][mine] = rewritten[number].offsets[mine + start - firsts[number]]
        yield rows


def _clean(folder: Path, newest: Generation) -> int:
    """Delete the shards and tables that the data set does not use, also those that a killed call left behind;
    return the number of shards.
    """
    names = open_shards(str(folder), newest, CacheConfig())["name"].tolist()
    used = {name.decode(errors="surrogateescape") for name in names}
    unused = [p for p in folder.iterdir() if PACKED.fullmatch(p.name) and p.name not in used]
    numbered = [path for name in _TABLES for path in folder.glob(table_name(name, 1).replace(".1.", ".*."))]
    optional = [
        folder / name
        for name, used_by in ((GROUPS, newest.groups), (FILES, newest.reading), (SPACING, newest.spacing))
        if used_by is None
    ]
    for path in (*unused, *numbered, *optional):
        path.unlink(missing_ok=True)
    remove_leftovers(folder, ("*.npy", "shard-*.tar", DESCRIPTION))
    sync(folder)
    return len(unused)
