"""`isotorus remove`: publish a new generation of a data set that lacks some images.

It writes tables only. Until `compact`, the shards keep the bytes and the older generations keep the images.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline import pool
from data_pipeline.dataset import files, masks, modified, spacing, withdrawn
from data_pipeline.dataset.description import Description, IndexCounts, describe
from data_pipeline.dataset.index import Dataset
from data_pipeline.dataset.moments import Moments
from data_pipeline.dataset.table_files import families
from data_pipeline.dataset_writer.publish import statistics
from data_pipeline.dataset_writer.write_tables import (
    ROWS_AT_ONCE,
    Tables,
    write_description,
    write_tables,
)
from data_pipeline.storage.cache import CacheConfig
from isotorus.errors import UserError

_AT_ONCE = 64
"""Images that a worker decodes in one task."""


def remove(dataset: Dataset, gone: NDArray[np.bool_], groups: NDArray[np.uint64], workers: int) -> None:
    """Publish a generation of a local data set, opened at its newest one, without the samples in the mask
    `gone` (n,). `groups` are the hashes of groups of which no image may be added later.

    If the process is killed before the end, the set stays as it was. Raises `UserError` if a removed image
    cannot be decoded, or if no image would be left.
    """
    refuse_others(dataset, gone)
    folder, before = Path(dataset.path), dataset.description
    sums = _sums(dataset, np.flatnonzero(gone), workers)
    shards, new_numbers = _shards(dataset, gone)
    kept_groups = None if dataset.groups is None else np.asarray(dataset.groups)[~gone]
    if kept_groups is not None and not kept_groups.any():
        kept_groups = None
    spacings = spacing.read(dataset)
    kept_spacing = None if spacings is None or not spacing.known(spacings[~gone]) else spacings[~gone]
    has_times = (folder / before.table(modified.MODIFIED)).exists()
    tables = Tables(
        shards,
        kept_groups,
        modified.read(folder, before)[~gone] if has_times else None,
        None if before.reading is None else files.read(dataset)[~gone],
        kept_spacing,
    )
    described = describe(dataset.path, CacheConfig())
    withdrawn.add(dataset, _places(dataset, described, gone, groups))
    number = max(generation.tables for generation in dataset.generations) + 1
    counts = IndexCounts(len(before.classes), len(before.extensions))
    write_tables(folder, number, _rows(dataset, gone, new_numbers), tables, counts)
    moments, sixteen_bit = before.moments - sums.moments, before.sixteen_bit - sums.sixteen_bit
    depth = 16 if sixteen_bit else 8
    mean, std = statistics(moments, depth)
    generation = before.model_copy(
        update={
            "count": int(shards["samples"].sum()),
            "shards": len(shards),
            "bytes": int(shards["bytes"].sum()),
            "class_counts": counts.labels.tolist(),
            "depth": depth,
            "sixteen_bit": sixteen_bit,
            "extension_counts": counts.kinds.tolist(),
            "mean": mean,
            "std": std,
            "moments": moments,
            "width": counts.width,
            "height": counts.height,
            "groups": None if kept_groups is None else int((np.unique(kept_groups) != 0).sum()),
            "spacing": None if kept_spacing is None else spacing.known(kept_spacing),
            "masks": before.masks
            and before.masks.model_copy(update={"images": before.masks.images - sums.masks}),
            "removed": before.removed + int(gone.sum()),
            "tables": number,
            "fingerprint": counts.fingerprint(
                before.classes,
                before.extensions,
                before.channels,
                depth,
                shards,
                before.pixel_rules,
                before.intensity,
            ),
        }
    )
    write_description(
        folder, described.model_copy(update={"generations": [*described.generations, generation]})
    )


def refuse_others(dataset: Dataset, gone: NDArray[np.bool_]) -> None:
    """Raise `UserError` for a set that cannot be published without these samples."""
    if gone.all():
        raise UserError(
            f"these are all {len(gone)} images of {dataset.path}, and a set without images cannot be read; "
            "delete that folder instead, or pack all that is left into another one"
        )
    family = families(dataset.generations)[-1]
    if len({(g.label_field, g.label_extension, str(g.missing)) for g in family}) > 1:
        raise UserError(
            f"{dataset.path} takes the labels of its generations from different fields; index the tars "
            "again into another folder, without these images"
        )


@dataclass(frozen=True)
class _Task:
    """Images to decode."""

    path: str
    indices: list[int]


@dataclass(frozen=True)
class _Sums:
    """What dataset.json counts of some images."""

    moments: Moments
    """Sums of their pixels."""
    sixteen_bit: int = 0
    """Number of images with 16 bits a channel."""
    masks: int = 0
    """Number of images with a mask; 0 for a set that was packed without any."""

    def __add__(self, other: "_Sums") -> "_Sums":
        return _Sums(
            self.moments + other.moments, self.sixteen_bit + other.sixteen_bit, self.masks + other.masks
        )


def _sums(dataset: Dataset, indices: NDArray[np.int64], workers: int) -> _Sums:
    """Return what dataset.json counts of some images."""
    tasks = [
        _Task(dataset.path, indices[start : start + _AT_ONCE].tolist())
        for start in range(0, len(indices), _AT_ONCE)
    ]
    found = pool.run(_decode, tasks, workers, "removing", len(indices))
    return sum(found, start=_Sums(Moments.zero(dataset.channels)))


def _decode(task: _Task) -> _Sums:
    """Return what `_sums` returns; runs in a worker of `pool.run`."""
    from data_pipeline.decoders.decode import decode_valid

    dataset = Dataset(task.path)
    with_masks = dataset.description.masks is not None
    total = _Sums(Moments.zero(dataset.channels))
    for i in task.indices:
        pool.count()
        try:
            pixels, valid = decode_valid(
                dataset.read(i),
                dataset.channels,
                None,
                rules=dataset.pixel_rules,
                intensity=dataset.intensity,
            )
        except ValueError as error:
            raise UserError(
                f"{dataset.name(i)} cannot be decoded ({error}); run: isotorus verify {dataset.path}"
            ) from None
        total += _Sums(
            Moments.of_image(pixels, valid),
            int(pixels.dtype == np.uint16),
            int(with_masks and masks.has(dataset, i)),
        )
    return total


def _shards(dataset: Dataset, gone: NDArray[np.bool_]) -> tuple[NDArray[np.void], NDArray[np.int64]]:
    """Return the shard table without the shards that lose all their samples, and for each old row its row in
    the new table. The new row of a shard that is left out is meaningless; do not read it.
    """
    left = np.zeros(len(dataset.shards), np.int64)
    for start in range(0, len(gone), ROWS_AT_ONCE):
        numbers = dataset.rows["shard"][start : start + ROWS_AT_ONCE]
        left += np.bincount(numbers[~gone[start : start + ROWS_AT_ONCE]], minlength=len(left))
    table = np.array(dataset.shards)
    table["samples"] = left
    table = table[left > 0]
    table["first"] = np.cumsum(table["samples"]) - table["samples"]
    return table, np.cumsum(left > 0) - 1


def _rows(
    dataset: Dataset, gone: NDArray[np.bool_], new_numbers: NDArray[np.int64]
) -> Iterator[NDArray[np.void]]:
    """Yield the rows of the index that are left, in pieces."""
    for start in range(0, len(gone), ROWS_AT_ONCE):
        piece = slice(start, start + ROWS_AT_ONCE)
        rows = np.array(dataset.rows[piece][~gone[piece]])
        rows["shard"] = new_numbers[rows["shard"]]
        yield rows


def _places(
    dataset: Dataset, described: Description, gone: NDArray[np.bool_], groups: NDArray[np.uint64]
) -> NDArray[np.void]:
    """Return the rows of withdrawn.npy: the place of each removed sample in every generation that held it,
    and a row for each group.
    """
    some = np.flatnonzero(gone)
    keys = dataset.rows["key"][some]
    rows = np.zeros(len(some), withdrawn.PLACE)
    rows["key"] = keys
    if dataset.description.reading is not None:
        of_files = files.read(dataset)["key"]
        # The file's hash keeps the file from being packed again, so it is left out where some of its pictures
        # stay.
        whole = ~np.isin(of_files[some], of_files[~gone])
        rows["file"] = np.where(whole, of_files[some], 0)
    if dataset.groups is not None:
        rows["group"] = np.where(np.isin(dataset.groups[some], groups), dataset.groups[some], 0)
    pieces = [_of_groups(groups)]
    known = withdrawn.of(dataset)
    for former in described.former:
        left = withdrawn.left_of(known, former.fingerprint, former.count)
        placed = rows[some < len(left)]
        placed["generation"] = withdrawn.number(former.fingerprint)
        placed["position"] = left[some[some < len(left)]]
        pieces.append(placed)
    for number, generation in enumerate(dataset.generations, start=1):
        older = Dataset(dataset.path, generation=number)
        order = np.argsort(older.rows["key"], kind="stable")
        at = np.searchsorted(older.rows["key"], keys, sorter=order).clip(max=len(order) - 1)
        held = older.rows["key"][order[at]] == keys
        placed = rows[held]
        placed["generation"] = withdrawn.number(generation.fingerprint)
        placed["position"] = order[at][held]
        pieces.append(placed)
    return np.concatenate(pieces)


def _of_groups(groups: NDArray[np.uint64]) -> NDArray[np.void]:
    """Return the rows of withdrawn.npy for whole groups."""
    rows = np.zeros(len(groups), withdrawn.PLACE)
    rows["group"] = groups
    return rows
