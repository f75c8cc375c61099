"""Decide which images are packed, and into which shard, from the list of images alone.

No image is opened for these decisions. Therefore any number of workers writes the same bytes, and shards that
an interrupted run has finished can be kept.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.dataset import files, withdrawn
from data_pipeline.dataset.description import Generation, MaskRule, Split
from data_pipeline.dataset.index import Dataset, key_hash
from data_pipeline.packing.division import Sides, divide, shuffle_place
from data_pipeline.packing.listing import Item, Named, class_names
from data_pipeline.scientific_formats.picture import PICTURE_NAME, Reading
from data_pipeline.storage.disk_list import DiskList, batches
from data_pipeline.tables import cells
from isotorus.errors import UserError, one_line

_OVERHEAD = 2048  # approximate bytes of tar headers and padding for an image and its label
_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Assignment:
    """The images of every shard, by name of the set; the name is "" if there is no split."""

    sets: dict[str, list[DiskList[Item]]]
    classes: list[str]
    """Class names in the order of their index."""
    split: Split | None
    reading: Reading | None = None
    """How files of scientific formats are read; None if there are no such files and no options for them."""
    mask_rule: MaskRule | None = None
    """Which values of masks are which class; None if no masks are packed."""

    @cached_property
    def fingerprint(self) -> str:
        """A SHA-256 that is equal for equal lists of images (path, size, label, columns) and equal
        options.
        """
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for name, shards in self.sets.items():
            for shard in shards:
                items = ((item.path, item.size, item.label, item.extra, item.group) for item in shard)
                _add_json(digest, f"[{json.dumps(name)}, [", items, "]]")
                masks = ((item.path, item.mask.name, item.mask.size) for item in shard if item.mask)
                if first := next(masks, None):
                    _add_json(digest, "[", chain([first], masks), "]")
        if self.reading is not None:
            digest.update(self.reading.model_dump_json(exclude_defaults=True).encode())
        if self.mask_rule is not None:
            digest.update(self.mask_rule.model_dump_json().encode())
        return digest.hexdigest()


def _add_json(digest: Any, before: str, rows: Iterable[tuple[Any, ...]], after: str) -> None:
    """Add to a hash the JSON list of these rows, as `json.dumps` writes it, with text around it."""
    for some in batches(rows, _ROWS_AT_ONCE):
        digest.update((before + json.dumps(some)[1:-1]).encode())
        before = ", "
    digest.update(after.encode())


def assign(
    items: DiskList[Item],
    classes: list[str],
    split: Split | None,
    shard_size: int,
    sides: Sides | None = None,
    reading: Reading | None = None,
    mask_rule: MaskRule | None = None,
    joined: Mapping[str, str] | None = None,
) -> Assignment:
    """Split the images into sets, shuffle them, and divide each set into shards of about `shard_size` bytes.
    The pictures of a file stay together.

    Groups in `sides` stay in their set, and those in `joined` are divided like the group that it names. A set
    may be empty. Raises `UserError` if two images have the same key.
    """
    sets = divide(_shuffle(items), split, sides, joined)
    any_scientific = any(item.format for item in items)
    shards = {name: _cut(members, shard_size) for name, members in sets.items()}
    return Assignment(shards, classes, split, reading or (Reading() if any_scientific else None), mask_rule)


def refuse_empty_sets(assignment: Assignment) -> None:
    """Raise `UserError` if a set that was asked for would contain no image."""
    for name, shards in assignment.sets.items():
        if not shards:
            assert assignment.split is not None
            images = sum(len(shard) for shards in assignment.sets.values() for shard in shards)
            raise UserError(
                f"the {name} set would be empty: {images} images at --val-fraction "
                f"{assignment.split.val_fraction:g} --test-fraction {assignment.split.test_fraction:g}; "
                "change the fractions or leave them out"
            )


def _shuffle(items: DiskList[Item]) -> DiskList[Item]:
    """Sort images by the hash of their keys, so that each shard mixes the classes and can be read in
    sequence.

    Raises `UserError` if two images have the same key.
    """
    shuffled = DiskList[Item]()
    before: Item | None = None
    for item in items.ordered(shuffle_place):
        if before and before.key == item.key:
            one, other = sorted((before.path, item.path))
            raise UserError(
                f"{one} and {other} would have the same key {item.key!r}; a key is the path without "
                "extension, with _ in place of each remaining dot; rename one, or list what to pack in a CSV"
            )
        shuffled.append(item)
        before = item
    _refuse_names_of_pictures(shuffled)
    return shuffled


def _refuse_names_of_pictures(items: DiskList[Item]) -> None:
    """Raise `UserError` if the key of an image is like those of the pictures of a file, as for scan/z012.png
    and scan.nii.
    """
    if not any(item.format for item in items):
        return
    like = {folder: item.path for item in items if (folder := _folder_of_pictures(item.key))}
    for item in items:
        if item.format and item.key in like:
            raise UserError(
                f"{like[item.key]} would have a key like those of the pictures in {item.path}; rename one, "
                "or list what to pack in a CSV"
            )


def _folder_of_pictures(key: str) -> str:
    """Return the folder of a key such as scan/z012, which a picture of a file may have; "" for others."""
    folder, _, name = key.rpartition("/")
    return folder if PICTURE_NAME.fullmatch(name) else ""


def _cut(items: DiskList[Item], shard_size: int) -> list[DiskList[Item]]:
    """Divide images, in their order, into shards of about `shard_size` bytes."""
    starts: list[int] = []
    room = 0
    for i, item in enumerate(items):
        need = item.size + _OVERHEAD
        if need > room or not starts:
            starts.append(i)
            room = shard_size
        room -= need
    return [items.part(start, stop) for start, stop in pairwise([*starts, len(items)])]


@dataclass(frozen=True)
class AlreadyPacked:
    """How many images of a list the data set contains already."""

    images: int
    relabelled: int
    """How many of them have another label in the list than in the data set."""

    def __str__(self) -> str:
        kept = f", {self.relabelled} of them with another label, which they keep" if self.relabelled else ""
        return f"{self.images} were there already{kept}"


def new_items(items: DiskList[Item], sets: list[Dataset]) -> tuple[DiskList[Item], AlreadyPacked]:
    """Return the images whose keys are in none of the sets, and a count of the others.

    Raises `UserError` if an image has the key of a packed image but another size in bytes.
    """
    packed = np.concatenate([files.read(dataset) for dataset in sets])
    keys, sizes, labels = packed["key"], packed["size"], np.concatenate([s.rows["label"] for s in sets])
    order = np.argsort(keys)
    hashes = np.fromiter((key_hash(item.key) for item in items), np.uint64, len(items))
    rows = order[np.searchsorted(keys, hashes, sorter=order).clip(max=len(keys) - 1)]
    classes = [*sets[0].classes, ""]  # the last for label -1; all sets of a split have the same
    new, relabelled = DiskList[Item](), 0
    for item, row, key_is_known in zip(items, rows, keys[rows] == hashes, strict=True):
        if not key_is_known or (sizes[row] != item.size and not _same_key(item, sets, int(row))):
            new.append(item)
        elif sizes[row] != item.size:
            raise UserError(
                f"{item.path} has {item.size} bytes, the packed image of that name has {sizes[row]}; "
                "packed images are never replaced: rename the new one, or pack all into another folder"
            )
        else:
            relabelled += item.label != classes[labels[row]]
    return new, AlreadyPacked(len(items) - len(new), relabelled)


def _same_key(item: Item, sets: list[Dataset], row: int) -> bool:
    """Return whether the key of `item` is that of a sample or of its file, and not only the hash of it.

    `row` is the sample's index in the concatenated sets.
    """
    for dataset in sets:
        if row < len(dataset):
            key = dataset.key(row)
            return key == item.key or key.startswith(f"{item.key}/")
        row -= len(dataset)
    raise AssertionError(row)


def without_withdrawn(items: DiskList[Item], sets: list[Dataset]) -> tuple[DiskList[Item], str]:
    """Return the images that were not removed from the sets, nor are of a group that was, and a line about
    the others; "" if there are none.
    """
    table = np.concatenate([withdrawn.of(dataset) for dataset in sets])
    if not len(table):
        return items, ""
    keys = set(withdrawn.hashes(table, "key", "file").tolist())
    groups = set(withdrawn.hashes(table, "group").tolist())
    stay, out = DiskList[Item](), Named()
    for item in items:
        if (item.group and key_hash(item.group) in groups) or key_hash(item.key) in keys:
            out.add(item.path)
        else:
            stay.append(item)
    if not out.count:
        return items, ""
    return stay, (
        f"note: {out.count} images were removed from this data set with isotorus remove and stay out (first: "
        f"{one_line(out.first[0])}); delete their files too"
    )


def with_packed_names(items: DiskList[Item], sets: list[Dataset]) -> DiskList[Item]:
    """Return the images with labels spelled as in the sets, which may have been packed when 1 and 1.0, or
    composed and decomposed accents, were different classes, or from a table in which 1.0 is text.
    """
    packed = cells.respelled(list(dict.fromkeys(name for dataset in sets for name in dataset.classes)))
    for label in {item.label for item in items} - packed.keys() - {""}:
        alone = cells.values([label], missing=())[0]  # by itself, not beside the labels of this table
        if alone in packed:
            packed[label] = packed[alone]
    changed = {new: old for new, old in packed.items() if new != old}
    return DiskList(i._replace(label=changed.get(i.label, i.label)) for i in items) if changed else items


def extended_classes(items: Iterable[Item], sets: list[Dataset]) -> list[str]:
    """Return the classes of the sets, which keep their indices, followed by the new classes of `items`."""
    return list(dict.fromkeys([*(name for dataset in sets for name in dataset.classes), *class_names(items)]))


def split_to_keep(dest: Path, packed: Split | None, asked: Split | None, grouped: bool) -> Split | None:
    """Return the split for new images, which is that of the images `packed` before.

    Raises `UserError` if the split `asked` for differs, or if images were grouped before and are not now, or
    the reverse.
    """
    if packed is not None and packed.by_column and (asked is None or not asked.by_column):
        raise UserError(
            f"{dest} was split by a column of its table; name that of the new images with --split-column"
        )
    if asked is not None and (packed is None or _shares(asked) != _shares(packed)):
        before = "without a split" if packed is None else f"with {_shares(packed)}"
        raise UserError(f"{dest} was packed {before}, not with {_shares(asked)}; leave these options out")
    if packed is not None and packed.grouped and not grouped:
        raise UserError(
            f"{dest} was split by groups of images; name those of the new ones with --group-column, "
            "--group-pattern or --group-field, so that none is split apart"
        )
    if packed is not None and grouped and not packed.grouped:
        raise UserError(
            f"{dest} was split image by image, so groups can no longer be kept together; "
            "leave out --group-column, --group-pattern and --group-field, or pack all images into another "
            "folder"
        )
    return packed


def reading_to_keep(dest: Path, packed: Reading | None, asked: Reading | None) -> Reading | None:
    """Return how new files of scientific formats are read: as those `packed` before, if there are any.

    Raises `UserError` if something else is `asked` for.
    """
    if packed is None or asked is None or asked == packed:
        return packed or asked
    before, now = (each.model_dump() for each in (packed, asked))
    name = next(name for name in before if before[name] != now[name])
    raise UserError(
        f"{dest} was packed with {name}={before[name]}, not {now[name]}; leave out --{name}, which "
        "stays as it was, or pack into another folder"
    )


def _shares(split: Split) -> str:
    """Return the command-line options that give this split."""
    if split.by_column:
        return "--split-column"
    fractions = f"--val-fraction {split.val_fraction:g} --test-fraction {split.test_fraction:g}"
    return fractions + " --stratify" * split.stratified


def refuse_new_sets(dest: Path, assigned: Assignment, names: list[str]) -> None:
    """Raise `UserError` if the new images would need a set that the data set in `dest` does not have."""
    for name, shards in assigned.sets.items():
        if name not in names:
            raise UserError(
                f"{dest} has no set {name}, only {', '.join(names)}, but {sum(map(len, shards))} new images "
                "are for it; pack all images into another folder"
            )


def refuse_misfit(dest: Path, packed: Generation, asked: int | None) -> None:
    """Raise `UserError` if new image files, with `asked` channels, cannot be added to the data set
    `packed`.
    """
    if packed.tar_names_in_keys:
        raise UserError(
            f"the keys in {dest} begin with the names of tars, which those of images do not; pack into "
            "another folder, and train on both"
        )
    if packed.label_field is not None or packed.label_extension is not None:
        place = f"the field {packed.label_field!r} of the samples' .json"
        if packed.label_field is None:
            place = f"the samples' .{packed.label_extension}"
        raise UserError(
            f"{dest} takes labels from {place}, as no packed shard does; pack into another folder, and train "
            "on both"
        )
    if asked not in (None, packed.channels) and (packed.channels, asked) != (1, 3):
        raise UserError(
            f"--channels {asked}: the images in {dest} have {packed.channels} channels; "
            f"use --channels {packed.channels}, or pack into another folder"
        )
