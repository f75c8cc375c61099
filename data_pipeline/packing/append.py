"""Which images a data set does not have yet."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.dataset.description import Generation, Split
from data_pipeline.dataset.index import Dataset, key_hash
from data_pipeline.packing.listing import Item, class_names
from isotorus.errors import UserError


@dataclass(frozen=True)
class Known:
    """The images of a listing that are there already."""

    images: int
    relabelled: int
    """Those of them that have another label in the listing."""

    def __str__(self) -> str:
        kept = f", {self.relabelled} of them with another label, which they keep" if self.relabelled else ""
        return f"{self.images} were there already{kept}"


def new_items(items: list[Item], sets: list[Dataset]) -> tuple[list[Item], Known]:
    """The images whose keys none of the sets has.

    Raises `UserError` if one has the key of a packed image, but another size.
    """
    keys, sizes, labels = (np.concatenate([s.rows[name] for s in sets]) for name in ("key", "size", "label"))
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
    return new, Known(len(items) - len(new), relabelled)


def _same_key(item: Item, sets: list[Dataset], row: int) -> bool:
    """Whether it is more than the hash of the key that `item` and the row of the sets have in common."""
    for dataset in sets:
        if row < len(dataset):
            return dataset.key(row) == item.key
        row -= len(dataset)
    raise AssertionError(row)


def all_classes(items: list[Item], sets: list[Dataset]) -> list[str]:
    """Those of the sets keep their index, new ones come after them."""
    return list(dict.fromkeys([*(name for dataset in sets for name in dataset.classes), *class_names(items)]))


def same_split(dest: Path, packed: Split | None, asked: Split | None, grouped: bool) -> Split | None:
    """How new images are shared out: as those `packed`; `UserError` if something else is asked for."""
    if asked is not None and (packed is None or _shares(asked) != _shares(packed)):
        before = "without a split" if packed is None else f"with {_shares(packed)}"
        raise UserError(f"{dest} was packed {before}, not with {_shares(asked)}; leave these options out")
    if packed is not None and packed.grouped and not grouped:
        raise UserError(
            f"{dest} was split by groups of images; name those of the new ones with --group-column or "
            "--group-pattern, so that none is split apart"
        )
    if packed is not None and grouped and not packed.grouped:
        raise UserError(
            f"{dest} was split image by image, so groups can no longer be kept together; "
            "leave out --group-column and --group-pattern, or pack all images into another folder"
        )
    return packed


def _shares(split: Split) -> str:
    return f"--val-fraction {split.val_fraction:g} --test-fraction {split.test_fraction:g}"


def refuse_misfit(dest: Path, packed: Generation, asked: int | None) -> None:
    """`UserError` unless files, and images of `asked` channels, go with those `packed`."""
    if packed.label_field is not None:
        raise UserError(
            f"{dest} takes labels from the field {packed.label_field!r} of the samples' .json, as no packed "
            "shard does; pack into another folder, and train on both"
        )
    if asked not in (None, packed.channels) and (packed.channels, asked) != (1, 3):
        raise UserError(
            f"--channels {asked}: the images in {dest} have {packed.channels} channels; "
            f"use --channels {packed.channels}, or pack into another folder"
        )
