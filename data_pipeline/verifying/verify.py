"""Check a data set: every byte of its shards, and whether its tables and shards agree."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline import pool
from data_pipeline.dataset import files, spacing
from data_pipeline.dataset.description import DESCRIPTION, Generation, IndexCounts, Unreadable, describe
from data_pipeline.dataset.table_files import (
    GROUPS,
    INDEX,
    SHARDS,
    families,
    open_groups,
    open_rows,
    open_shards,
    shard_names,
)
from data_pipeline.dataset_writer.publish import statistics
from data_pipeline.storage.cache import CacheConfig
from data_pipeline.storage.reader import is_remote
from data_pipeline.storage.tar_reader import printable
from data_pipeline.verifying.verify_shard import Task, verify_shard
from isotorus.errors import UserError

_ROWS_AT_ONCE = 2**20


def verify(path: str, workers: int) -> list[str]:
    """Return a line for each damage in a data set, in any of its generations; an empty list if nothing is
    damaged.

    Raises `UserError` if `path` is not a data set.
    """
    cache = CacheConfig()
    try:
        generations = describe(path, cache).generations
    except Unreadable as error:
        return [str(error)]
    damage: list[str] = []
    checked: set[tuple[bytes, int]] = set()
    for family in reversed(families(generations)):
        damage += _family(path, family, checked, workers, cache)
    return damage


def _family(
    path: str,
    generations: list[Generation],
    checked: set[tuple[bytes, int]],
    workers: int,
    cache: CacheConfig,
) -> list[str]:
    """Return a line for each damage in generations that share their tables.

    `checked` are the name and the number of samples of shards that were compared with their rows; those of
    this family are added. The same rows in older tables are compared by the fingerprint alone.
    """
    newest = generations[-1]
    damage = []
    rows: NDArray[np.void] | None = None
    try:
        rows = open_rows(path, newest, cache)
    except UserError as error:
        damage.append(str(error))
    try:
        shards = open_shards(path, newest, cache)
    except UserError as error:
        return [*damage, str(error)]
    damage += [f"{path}: {line}" for line in _tables(generations, shards, rows)]
    damage += _groups(path, generations, cache)
    damage += _files(path, newest, cache)
    damage += _spacing(path, generations, cache)
    known = list(zip(shards["name"].tolist(), shards["samples"].tolist(), strict=True))
    tasks = [
        Task(path, number, rows is not None, newest.tables)
        for number, shard in enumerate(known)
        if shard not in checked
    ]
    checked.update(known)
    for lines in pool.run(verify_shard, tasks, workers, "verifying", newest.count):
        damage += lines
    return damage


def unknown_tars(path: str) -> list[str]:
    """Return the names of tar files in a local data set's folder that do not belong to the data set."""
    if is_remote(path):
        return []
    known = set(shard_names(path, describe(path, CacheConfig()).generations, CacheConfig()))
    names = [file.name for file in Path(path).glob("[!.]*.tar")]
    return sorted(printable(name) for name in names if name.encode(errors="surrogateescape") not in known)


def _tables(
    generations: list[Generation], shards: NDArray[np.void], rows: NDArray[np.void] | None
) -> Iterator[str]:
    """Yield each contradiction between dataset.json, shards.npy and index.npy (None if it cannot be read)."""
    if len(np.unique(shards["name"])) < len(shards):
        yield f"{SHARDS} names a shard twice"
    if (np.cumsum(shards["samples"]) - shards["samples"] != shards["first"]).any():
        yield f"{SHARDS} has shards that do not begin where those before them end"
    for number, generation in enumerate(generations, start=1):
        table = shards[: generation.shards]
        totals = [len(table), int(table["samples"].sum()), int(table["bytes"].sum())]
        if totals != [generation.shards, generation.count, generation.bytes] or generation.count < 1:
            yield f"{SHARDS} has other shards, samples or bytes than generation {number} in {DESCRIPTION}"
            return
        if (generation.mean, generation.std) != _statistics(generation):
            yield f"{DESCRIPTION}: mean and std of generation {number} are not those of its moments"
    if rows is not None:
        yield from _counts(generations, shards, rows)


def _groups(path: str, generations: list[Generation], cache: CacheConfig) -> Iterator[str]:
    """Yield what is wrong with the groups of the samples."""
    for number, generation in enumerate(generations, start=1):
        try:
            groups = open_groups(path, generation, cache)
        except UserError as error:
            yield str(error)
            return
        if groups is not None and (np.unique(groups) != 0).sum() != generation.groups:
            yield f"{path}: {GROUPS} has another number of groups than generation {number} in {DESCRIPTION}"


def _files(path: str, newest: Generation, cache: CacheConfig) -> Iterator[str]:
    """Yield what is wrong with the files that the samples were read from."""
    if newest.reading is None:
        return
    try:
        table = files.open_files(path, newest, cache)
    except UserError as error:
        yield str(error)
        return
    if len(np.unique(table)) != len(np.unique(table["key"])):
        yield f"{path}: {files.FILES} names a file with two sizes or checksums"


def _spacing(path: str, generations: list[Generation], cache: CacheConfig) -> Iterator[str]:
    """Yield what is wrong with the spacing of the samples."""
    for number, generation in enumerate(generations, start=1):
        if generation.spacing is None:
            continue
        try:
            table = spacing.open_spacing(path, generation, cache)
        except UserError as error:
            yield str(error)
            return
        if spacing.known(table) != generation.spacing:
            yield f"{path}: {spacing.SPACING} does not fit generation {number} in {DESCRIPTION}"


def _statistics(generation: Generation) -> tuple[list[float], list[float]] | None:
    """Return the mean and standard deviation that follow from a generation's sums; None if the sums are
    impossible.
    """
    try:
        return statistics(generation.moments, generation.depth)
    except (ArithmeticError, ValueError):
        return None


def _counts(generations: list[Generation], shards: NDArray[np.void], rows: NDArray[np.void]) -> Iterator[str]:
    """Yield each contradiction between dataset.json and the index, in one pass over the index for all
    generations.
    """
    classes, extensions = generations[-1].classes, generations[-1].extensions
    counts = IndexCounts(len(classes), len(extensions))
    start = 0
    for number, generation in enumerate(generations, start=1):
        for begin in range(start, generation.count, _ROWS_AT_ONCE):
            some = rows[begin : min(begin + _ROWS_AT_ONCE, generation.count)]
            if not -1 <= some["label"].min() <= some["label"].max() < len(classes):
                yield f"{INDEX} has labels that are none of the {len(classes)} classes in {DESCRIPTION}"
                return
            if some["kind"].max() >= len(extensions):
                yield f"{INDEX} has images of none of the extensions in {DESCRIPTION}"
                return
            counts.add(some)
        start = generation.count
        differing = {
            "class_counts": generation.class_counts != counts.labels[: len(generation.classes)].tolist(),
            "extension_counts": generation.extension_counts
            != counts.kinds[: len(generation.extensions)].tolist(),
            "width": generation.width != counts.width,
            "height": generation.height != counts.height,
            "fingerprint": generation.fingerprint
            != counts.fingerprint(
                generation.classes,
                generation.extensions,
                generation.channels,
                generation.depth,
                shards[: generation.shards],
                generation.pixel_rules,
                generation.intensity,
            ),
        }
        if any(differing.values()):
            names = ", ".join(name for name, differs in differing.items() if differs)
            yield f"{DESCRIPTION}: {names} of generation {number} do not fit {INDEX} and {SHARDS}"
