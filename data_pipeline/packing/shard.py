"""Write one shard: read its images, check them by decoding, count them and write them to a tar file."""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from data_pipeline import pool
from data_pipeline.dataset import channel_names, files, masks, spacing
from data_pipeline.dataset.description import PLAIN, MaskRule
from data_pipeline.dataset.files import FILE
from data_pipeline.dataset.index import key_hash
from data_pipeline.dataset.near_copies import thumbnails
from data_pipeline.dataset.near_copies.thumbnails import SIDE, Thumbnails
from data_pipeline.dataset_writer.part import Census, Part, common_channels
from data_pipeline.decoders.intensity import NONE, Intensity
from data_pipeline.decoders.pixels import PixelRules
from data_pipeline.packing.listing import Item
from data_pipeline.packing.samples import LeftOut, Sample, file_row, samples
from data_pipeline.scientific_formats.picture import Reading
from data_pipeline.storage.disk_list import DiskList
from isotorus.errors import from_os_error, no_memory
from isotorus.files import atomic
from isotorus.section import Section


@dataclass(frozen=True)
class Task:
    """A shard to be written."""

    source: Path
    """Folder of the images."""
    items: DiskList[Item]
    classes: Mapping[str, int]
    """Index of each class."""
    channels: int | None
    """Leave out images that cannot be converted to this number of channels; None: all must have the same
    number."""
    target: Path
    """The tar file to write; its index rows (.npy) and its `Staged` record (.json) are written beside it."""
    pixel_rules: PixelRules
    """Version of the rules by which files become pixels."""
    reading: Reading
    """How files of scientific formats are read."""
    intensity: Intensity = NONE
    """How the numbers of the images become brightness."""
    mask_rule: MaskRule = PLAIN
    find_copies: bool = False
    """Whether to write thumbnails of the images beside the shard, by which near copies are found."""

    @property
    def thumbnails(self) -> Path:
        """The file (.npy) with the thumbnails of the shard's samples, with `find_copies`."""
        return self.target.with_suffix(".thumbnails.npy")

    @property
    def files(self) -> Path:
        """The file (.npy) with the `dataset.files` of the shard's samples; only if any has its own."""
        return self.target.with_suffix(".files.npy")

    @property
    def spacing(self) -> Path:
        """The file (.npy) with the `dataset.spacing` of the shard's samples; only if any is known."""
        return self.target.with_suffix(".spacing.npy")

    @property
    def sources(self) -> str:
        """A hash of the modification times of the images and masks: it changes when a file is replaced, also
        by one of equal size.
        """
        digest = hashlib.blake2b(digest_size=8)
        for item in self.items:
            digest.update(f"{item.modified} ".encode())
        for mask in (item.mask for item in self.items if item.mask):
            digest.update(f"{mask.modified} ".encode())
        return digest.hexdigest()


class Staged(Section):
    """The record of a finished shard that is not published yet."""

    sources: str
    channels: int | None
    intensity: Intensity = NONE
    part: Part


def write(task: Task) -> Part:
    """Write the shard, then its index rows, then its `Staged` record, and return the shard's counts.

    Runs in a worker of `pool.run` and reports each image to the progress bar. Raises `UserError` if a file
    cannot be read or has changed since it was listed, if the disk is full, or if the images of the shard have
    different numbers of channels.
    """
    try:
        # Beside the shard may lie what an earlier call has written from other files.
        record = task.target.with_suffix(".json")
        for earlier in (record, task.files, task.spacing, task.thumbnails):
            earlier.unlink(missing_ok=True)
        with atomic(task.target) as file:
            census, file_rows, spacings, small = _write_tar(task, file)
        with task.target.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        part, rows = census.part(task.target.stat().st_size, sha256)
        with atomic(task.target.with_suffix(".npy")) as file:
            np.save(file, rows)
        if file_rows is not None:
            files.write(task.files, file_rows)
        if task.find_copies:
            with atomic(task.thumbnails) as file:
                np.save(file, np.array(small, np.int8).reshape(-1, SIDE, SIDE))
        if spacing.known(spacings):
            spacing.write(task.spacing, spacings)
        with atomic(record) as file:
            staged = Staged(sources=task.sources, channels=task.channels, intensity=task.intensity, part=part)
            file.write(staged.model_dump_json().encode())
    except OSError as error:
        raise from_os_error(error, f"writing {task.target}") from error
    common_channels([part.contents])  # raises now, not only when all shards are written
    return part


def finished(task: Task, *, check_sources: bool = True) -> Part | None:
    """Return the counts of this shard if an earlier call has written it; None if it must be written."""
    staged = _staged(task)
    if staged is None or (check_sources and staged.sources != task.sources):
        return None
    if staged.intensity != task.intensity or (task.find_copies and not task.thumbnails.exists()):
        return None
    fits = staged.channels is None and set(staged.part.contents) <= {task.channels}
    return staged.part if fits or staged.channels == task.channels else None


def is_current(task: Task) -> bool:
    """Return whether the shard was written from files that have the same times as those of the task."""
    staged = _staged(task)
    return staged is not None and staged.sources == task.sources


def groups(task: Task, keys: NDArray[np.uint64], file_keys: NDArray[np.uint64]) -> NDArray[np.uint64] | None:
    """Return the hash of each row's group, 0 for none; None if no image of the shard has a group.

    `keys` are those of the rows, and `file_keys` those of their files. The pictures of one file are a group
    of their own, unless the file belongs to a group.
    """
    by_file = {key_hash(item.key): key_hash(item.group) for item in task.items if item.group}
    groups = np.array([by_file.get(key, 0) for key in file_keys.tolist()], np.uint64)
    groups = np.where((groups == 0) & (keys != file_keys), file_keys, groups)
    return groups if groups.any() else None


def file_keys(task: Task) -> NDArray[np.uint64]:
    """Return the `key_hash` of each row's file; the shard must have been written."""
    if task.files.exists():
        return np.asarray(np.load(task.files, allow_pickle=False)["key"])
    return np.asarray(np.load(task.target.with_suffix(".npy"), allow_pickle=False)["key"])


def _staged(task: Task) -> Staged | None:
    """Return the record of the shard; None if it is not written."""
    try:
        return Staged.model_validate_json(task.target.with_suffix(".json").read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _write_tar(
    task: Task, file: BinaryIO
) -> tuple[Census, NDArray[np.void] | None, NDArray[np.void], list[Thumbnails]]:
    """Write the tar file, and return four things about its samples: their counts, the file of each sample if
    any came from a scientific format, the spacing of each, and with `find_copies` the thumbnail of each.

    A file is packed whole or not at all: if one of its pictures cannot be, what was written of it is removed.
    """
    census = Census()
    rows: list[tuple[int, int, int]] = []
    spacings: list[tuple[float, float, int]] = []
    small: list[Thumbnails] = []
    several = False
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for item in task.items:
            pool.count()
            label = task.classes.get(item.label, -1)
            start, before = tar.offset, census.mark()
            try:
                first, own, own_small = _add_file(tar, census, task, item, label)
            except MemoryError as error:
                raise no_memory(item.path, error) from None
            except ValueError as error:
                census.rewind(before)
                census.skip(item.path, str(error))
                file.seek(start)
                file.truncate()
                tar.offset = start
                continue
            several = several or bool(item.format or (first and first.key != item.key))
            if first is not None:
                rows += [file_row(task.source, item, first)] * len(own)
            spacings += own
            small += own_small
    return census, np.array(rows, FILE) if several else None, np.array(spacings, spacing.ROW), small


def _add_file(
    tar: tarfile.TarFile, census: Census, task: Task, item: Item, label: int
) -> tuple[Sample | None, list[tuple[float, float, int]], list[Thumbnails]]:
    """Append the samples of one file to the tar file and count them; return the first sample, the spacing of
    each, and with `find_copies` the thumbnail of each.

    Raises what `samples` raises, and leaves to the caller what was written before.
    """
    first, left_out = None, False
    spacings: list[tuple[float, float, int]] = []
    small: list[Thumbnails] = []
    how = (task.channels, task.pixel_rules, task.intensity, task.reading, task.mask_rule)
    for sample in samples(task.source, item, *how):
        if isinstance(sample, LeftOut):
            census.skip(f"{item.path} ({sample.name})", sample.reason)
            left_out = True
            continue
        offset = _add(tar, sample, label)
        key, extension, data = sample.key, sample.extension, sample.data
        census.add(item.path, key, extension, label, offset, data, sample.pixels, sample.valid)
        header = json.loads(sample.extra) if sample.extra else {}
        census.add_channel_names(channel_names.of_header(header, sample.pixels.shape[2]))
        if sample.mask:
            census.add_mask(masks.classes(sample.mask))
        first = first or sample
        spacings.append(spacing.row(header))
        if task.find_copies:
            small.append(thumbnails.thumbnail(sample.pixels))
    if first is None and not left_out:
        census.skip(item.path, "no pictures in this file")
    return first, spacings, small


def _add(tar: tarfile.TarFile, sample: Sample, label: int) -> int:
    """Append the files of one sample to the tar file; return the offset of the image's bytes in it."""
    members = {sample.extension: sample.data}
    if label >= 0:
        members["cls"] = str(label).encode()
    if sample.extra:
        members["json"] = sample.extra.encode()
    if sample.mask:
        members[masks.EXTENSION] = sample.mask
    offset = 0
    for name, content in members.items():
        # No owner and no date, so that every user writes the same bytes at any time. webdataset.TarWriter
        # names an owner, does not tell where an image lies, and cannot take back a file that is damaged.
        header = tarfile.TarInfo(f"{sample.key}.{name}")
        header.size, header.mode = len(content), 0o444
        tar.addfile(header, io.BytesIO(content))
        if name == sample.extension:
            offset = tar.offset - -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return offset
