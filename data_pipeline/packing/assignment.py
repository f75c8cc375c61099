"""Decide which images are packed, and into which shard, from the list of images alone.

No image is opened for these decisions. Therefore any number of workers writes the same bytes, and shards that
an interrupted run has finished can be kept.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from data_pipeline.dataset import files, withdrawn
from data_pipeline.dataset.description import Generation, MaskRule, Split
from data_pipeline.dataset.index import Dataset, key_hash
from data_pipeline.field_formats.picture import PICTURE_NAME, Reading
from data_pipeline.packing.division import Sides, divide, hashed
from data_pipeline.packing.listing import Item, class_names
from data_pipeline.tables import cells
from isotorus.errors import UserError, one_line

_OVERHEAD = 2048  # approximate bytes of tar headers and padding for an image and its label


@dataclass(frozen=True)
class Assignment:
    """The images of every shard, by name of the set; the name is "" if there is no split."""

    sets: dict[str, list[list[Item]]]
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
                items = [(item.path, item.size, item.label, item.extra, item.group) for item in shard]
                digest.update(json.dumps([name, items]).encode())
                masks = [(item.path, item.mask.name, item.mask.size) for item in shard if item.mask]
                digest.update(json.dumps(masks).encode() if masks else b"")
        if self.reading is not None:
            digest.update(self.reading.model_dump_json(exclude_defaults=True).encode())
        if self.mask_rule is not None:
            digest.update(self.mask_rule.model_dump_json().encode())
        return digest.hexdigest()


def assign(
    items: list[Item],
    classes: list[str],
    split: Split | None,
    shard_size: int,
    sides: Sides | None = None,
    reading: Reading | None = None,
    mask_rule: MaskRule | None = None,
) -> Assignment:
    """Split the images into sets, shuffle them, and divide each set into shards of about `shard_size` bytes.
    The pictures of a file stay together.

    Groups in `sides` stay in their set. A set may be empty. Raises `UserError` if two images have the same
    key.
    """
    sets = divide(_shuffle(items), split, sides)
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


def _shuffle(items: list[Item]) -> list[Item]:
    """Sort images by the hash of their keys, so that each shard mixes the classes and can be read in
    sequence.

    Raises `UserError` if two images have the same key.
    """
    hashes = np.fromiter((hashed(item.key, "shuffle") for item in items), np.uint64, len(items))
    order = np.argsort(hashes, kind="stable")
    for i in np.flatnonzero(np.diff(hashes[order]) == 0):
        one, other = sorted((items[order[i]], items[order[i + 1]]), key=lambda item: item.path)
        if one.key == other.key:
            raise UserError(
                f"{one.path} and {other.path} would have the same key {one.key!r}; a key is the path without "
                "extension, with _ in place of each remaining dot; rename one, or list what to pack in a CSV"
            )
    _refuse_names_of_pictures(items)
    return [items[i] for i in order]


def _refuse_names_of_pictures(items: list[Item]) -> None:
    """Raise `UserError` if the key of an image is like those of the pictures of a file, as for scan/z012.png
    and scan.nii.
    """
    stacks = {item.key: item.path for item in items if item.format}
    if not stacks:
        return
    for item in items:
        folder, _, name = item.key.rpartition("/")
        if folder in stacks and PICTURE_NAME.fullmatch(name):
            raise UserError(
                f"{item.path} would have a key like those of the pictures in {stacks[folder]}; rename one, "
                "or list what to pack in a CSV"
            )


def _cut(items: list[Item], shard_size: int) -> list[list[Item]]:
    """Divide images, in their order, into shards of about `shard_size` bytes."""
    shards: list[list[Item]] = []
    room = 0
    for item in items:
        need = item.size + _OVERHEAD
        if need > room or not shards:
            shards.append([])
            room = shard_size
        shards[-1].append(item)
        room -= need
    return shards


@dataclass(frozen=True)
class AlreadyPacked:
    """How many images of a list the data set contains already."""

    images: int
    relabelled: int
    """How many of them have another label in the list than in the data set."""

    def __str__(self) -> str:
        kept = f", {self.relabelled} of them with another label, which they keep" if self.relabelled else ""
        return f"{self.images} were there already{kept}"


def new_items(items: list[Item], sets: list[Dataset]) -> tuple[list[Item], AlreadyPacked]:
    """Return the images whose keys are in none of the sets, and a count of the others.

    Raises `UserError` if an image has the key of a packed image but another size in bytes.
    """
    packed = np.concatenate([files.read(dataset) for dataset in sets])
    keys, sizes, labels = packed["key"], packed["size"], np.concatenate([s.rows["label"] for s in sets])
    order = np.argsort(keys)
    hashes = np.fromiter((key_hash(item.key) for item in items), np.uint64, len(items))
    rows = order[np.searchsorted(keys, hashes, sorter=order).clip(max=len(keys) - 1)]
    classes = [*sets[0].classes, ""]  # the last for label -1; all sets of a split have the same
    new, relabelled = [], 0
    for item, row, key_is_known in zip(items, rows.tolist(), (keys[rows] == hashes).tolist(), strict=True):
        if not key_is_known or (sizes[row] != item.size and not _same_key(item, sets, row)):
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


def without_withdrawn(items: list[Item], sets: list[Dataset]) -> tuple[list[Item], str]:
    """Return the images that were not removed from the sets, nor are of a group that was, and a line about
    the others; "" if there are none.
    """
    table = np.concatenate([withdrawn.of(dataset) for dataset in sets])
    if not len(table):
        return items, ""
    keys = set(withdrawn.hashes(table, "key", "file").tolist())
    groups = set(withdrawn.hashes(table, "group").tolist())
    stay: list[Item] = []
    out: list[Item] = []
    for item in items:
        of_group = bool(item.group) and key_hash(item.group) in groups
        (out if of_group or key_hash(item.key) in keys else stay).append(item)
    if not out:
        return items, ""
    return stay, (
        f"note: {len(out)} images were removed from this data set with isotorus remove and stay out (first: "
        f"{one_line(out[0].path)}); delete their files too"
    )


def with_packed_names(items: list[Item], sets: list[Dataset]) -> list[Item]:
    """Return the images with labels spelled as in the sets, which may have been packed when 1 and 1.0, or
    composed and decomposed accents, were different classes, or from a table in which 1.0 is text.
    """
    packed = cells.respelled(list(dict.fromkeys(name for dataset in sets for name in dataset.classes)))
    for label in {item.label for item in items} - packed.keys() - {""}:
        alone = cells.values([label], missing=())[0]  # by itself, not beside the labels of this table
        if alone in packed:
            packed[label] = packed[alone]
    changed = {new: old for new, old in packed.items() if new != old}
    return [replace(i, label=changed[i.label]) if i.label in changed else i for i in items]


def extended_classes(items: list[Item], sets: list[Dataset]) -> list[str]:
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
