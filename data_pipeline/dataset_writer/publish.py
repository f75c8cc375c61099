"""Publish finished shards as a data set, or as a further generation of one: completely or not at all."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset import files, modified, spacing
from data_pipeline.dataset.description import (
    PLAIN,
    Description,
    Generation,
    IndexCounts,
    MaskRule,
    Masks,
    Split,
    describe,
)
from data_pipeline.dataset.index import Dataset
from data_pipeline.dataset.moments import Moments
from data_pipeline.dataset.table_files import ROW, shard_row
from data_pipeline.dataset_writer.part import Part
from data_pipeline.dataset_writer.write_tables import (
    ROWS_AT_ONCE,
    Tables,
    write_description,
    write_tables,
)
from data_pipeline.decoders.intensity import NONE, Intensity
from data_pipeline.decoders.pixels import PixelRules
from data_pipeline.scientific_formats.picture import Reading
from data_pipeline.storage.cache import CacheConfig


@dataclass(frozen=True)
class FinishedShard:
    """A shard at its final place, where readers will open it."""

    name: str
    """Name relative to the data set, or an absolute path or URL."""
    part: Part
    rows: Path
    """File (.npy) of the shard's index rows. Column `shard` is ignored, `kind` is an index into
    `part.extensions`."""
    groups: NDArray[np.uint64] | None = None
    """Hash of the group of each row, 0 for none; None if no groups are known."""
    modified: NDArray[np.int64] | None = None
    """Time of each row's image file, see `dataset.modified`; None if it is not known."""
    files: NDArray[np.void] | None = None
    """The file of each row, see `dataset.files`; None if each row is a file."""
    spacing: NDArray[np.void] | None = None
    """The spacing of each row, see `dataset.spacing`; None if none is known."""


def publish(
    folder: Path,
    shards: list[FinishedShard],
    *,
    classes: list[str],
    channels: int,
    channel_names: list[str] | None = None,
    depth: int,
    split: Split | None,
    plan: str,
    skipped: int,
    pixel_rules: PixelRules,
    intensity: Intensity = NONE,
    label_field: str | None = None,
    label_extension: str | None = None,
    tar_names_in_keys: bool = False,
    missing: Sequence[str] | None = None,
    table_missing: Sequence[str] | None = None,
    reading: Reading | None = None,
    mask_rule: MaskRule | None = None,
    base: Dataset | None = None,
) -> None:
    """Write index.npy, shards.npy and at last dataset.json of a data set with these shards.

    With `base`, the data set that is in `folder` already, the shards are added to it as a new generation. If
    the process is killed before the end, the data set stays as it was.
    """
    assert all(shard.part.samples for shard in shards)
    extensions = list(base.description.extensions) if base else []
    extensions += sorted({e for shard in shards for e in shard.part.extensions} - set(extensions))
    table = _shard_table(shards, base)
    counts = IndexCounts(len(classes), len(extensions))
    groups = _groups(shards, base)
    reading = _reading(shards, base, reading)
    spacings = _spacings(shards, base)
    tables = Tables(
        table,
        groups,
        _times(shards, base) if any(shard.modified is not None for shard in shards) else None,
        None if reading is None else _files(shards, base),
        spacings,
    )
    number = base.description.tables if base else 0
    write_tables(folder, number, _index(shards, base, extensions), tables, counts)

    moments = _moments(shards, base, channels)
    mean, std = statistics(moments, depth)
    generation = Generation(
        count=int(table["samples"].sum()),
        shards=len(table),
        bytes=int(table["bytes"].sum()),
        classes=classes,
        class_counts=counts.labels.tolist(),
        channels=channels,
        channel_names=channel_names,
        depth=depth,
        sixteen_bit=(base.description.sixteen_bit if base else 0) + sum(s.part.sixteen_bit for s in shards),
        extensions=extensions,
        extension_counts=counts.kinds.tolist(),
        mean=mean,
        std=std,
        moments=moments,
        width=counts.width,
        height=counts.height,
        skipped=skipped,
        label_field=label_field,
        label_extension=label_extension,
        tar_names_in_keys=tar_names_in_keys,
        missing=None if missing is None else list(missing),
        table_missing=None if table_missing is None else list(table_missing),
        pixel_rules=pixel_rules,
        reading=reading,
        intensity=intensity,
        masks=_masks(shards, base, mask_rule),
        split=split,
        groups=None if groups is None else int((np.unique(groups) != 0).sum()),
        spacing=None if spacings is None else spacing.known(spacings),
        removed=base.description.removed if base else 0,
        tables=number,
        plan=plan,
        fingerprint=counts.fingerprint(classes, extensions, channels, depth, table, pixel_rules, intensity),
    )
    before = describe(str(folder), CacheConfig()) if base else None
    older = before.generations[: base.generation] if base and before else []
    former = before.former if before else []
    write_description(folder, Description(generations=[*older, generation], former=former))


def _groups(shards: list[FinishedShard], base: Dataset | None) -> NDArray[np.uint64] | None:
    """Return the groups of the whole data set, 0 where a part of it knows none; None if no part does."""
    if all(shard.groups is None for shard in shards) and (base is None or base.groups is None):
        return None
    parts = [np.zeros(s.part.samples, np.uint64) if s.groups is None else s.groups for s in shards]
    if base is not None:
        parts.insert(0, np.zeros(len(base), np.uint64) if base.groups is None else base.groups)
    return np.concatenate(parts)


def _masks(shards: list[FinishedShard], base: Dataset | None, rule: MaskRule | None) -> Masks | None:
    """Return what is known about the masks of the whole data set; None if there are none."""
    before = base.description.masks if base else None
    images = sum(shard.part.masks for shard in shards) + (before.images if before else 0)
    if not images:
        return None
    classes = {number for shard in shards for number in shard.part.mask_classes}
    classes |= set(before.classes) if before else set()
    return Masks(images=images, classes=sorted(classes), rule=before.rule if before else rule or PLAIN)


def _reading(shards: list[FinishedShard], base: Dataset | None, asked: Reading | None) -> Reading | None:
    """Return how the files of the data set were read; None if each sample is a file."""
    if base and base.description.reading:
        return base.description.reading
    return asked or Reading() if any(shard.files is not None for shard in shards) else None


def _files(shards: list[FinishedShard], base: Dataset | None) -> NDArray[np.void]:
    """Return the files of all samples, in the order of the index."""
    tables = [files.read(base)] if base else []
    for shard in shards:
        own = shard.files
        tables.append(files.of_rows(np.load(shard.rows, allow_pickle=False)) if own is None else own)
    return np.concatenate(tables)


def _spacings(shards: list[FinishedShard], base: Dataset | None) -> NDArray[np.void] | None:
    """Return the spacing of all samples, in the order of the index; None if none is known."""
    old = spacing.read(base) if base else None
    if old is None and all(shard.spacing is None for shard in shards):
        return None
    parts = [np.zeros(s.part.samples, spacing.ROW) if s.spacing is None else s.spacing for s in shards]
    if base is not None:
        parts.insert(0, np.zeros(len(base), spacing.ROW) if old is None else old)
    return np.concatenate(parts)


def _times(shards: list[FinishedShard], base: Dataset | None) -> NDArray[np.int64]:
    """Return the times of all image files, in the order of the index; 0 where a time is not known."""
    times = [modified.read(Path(base.path), base.description)] if base else []
    times += [np.zeros(s.part.samples, np.int64) if s.modified is None else s.modified for s in shards]
    return np.concatenate(times)


def _moments(shards: list[FinishedShard], base: Dataset | None, channels: int) -> Moments:
    """Return the pixel sums of the whole data set."""
    moments = Moments.zero(channels)
    if base:
        moments += base.description.moments
    for shard in shards:
        for content in shard.part.contents.values():
            moments += content.moments
    return moments


def statistics(moments: Moments, depth: int) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation in each channel, where white is 1; the latter is at least one
    grey level.
    """
    return moments.mean, [max(std, 1 / (2**depth - 1)) for std in moments.std]


def _shard_table(shards: list[FinishedShard], base: Dataset | None) -> NDArray[np.void]:
    """Return the shard table: the rows of `base`, then those of the new shards."""
    names = [shard.name.encode(errors="surrogateescape") for shard in shards]
    longest = max(map(len, names), default=1)
    old = base.shards if base else np.empty(0, shard_row(1))
    table = np.empty(len(old) + len(shards), shard_row(max(longest, old.dtype["name"].itemsize)))
    table[: len(old)] = old
    for row, name, shard in zip(table[len(old) :], names, shards, strict=True):
        row["name"], row["bytes"], row["samples"] = name, shard.part.bytes, shard.part.samples
        row["sha256"] = shard.part.sha256.encode()
    table["first"] = np.cumsum(table["samples"]) - table["samples"]
    return table


def _index(
    shards: list[FinishedShard], base: Dataset | None, extensions: list[str]
) -> Iterator[NDArray[np.void]]:
    """Yield the rows of the index in pieces: the rows of `base`, then those of the new shards."""
    old = base.rows if base else np.empty(0, ROW)
    for start in range(0, len(old), ROWS_AT_ONCE):
        yield old[start : start + ROWS_AT_ONCE]
    for number, shard in enumerate(shards, start=len(base.shards) if base else 0):
        rows = np.load(shard.rows, allow_pickle=False)
        rows["shard"] = number
        rows["kind"] = np.array([extensions.index(e) for e in shard.part.extensions])[rows["kind"]]
        yield rows
