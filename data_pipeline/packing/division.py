"""Divide images into the sets of a split: by hash, by a column of their table, or class by class."""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from data_pipeline.dataset import files
from data_pipeline.dataset.description import Split
from data_pipeline.dataset.index import Dataset, key_hash
from data_pipeline.packing.listing import Item
from data_pipeline.tables import split_names
from isotorus.errors import UserError

Sides = Mapping[str, str]
"""The set that each group of images already packed is in, by group."""


def divide(items: list[Item], split: Split | None, sides: Sides | None = None) -> dict[str, list[Item]]:
    """Return the images of each set of the split, in their order; the name is "" if there is no split.

    Images of a group in `sides` go to its set. Raises `UserError` if the table puts images of one group into
    different sets.
    """
    if split is None:
        return {"": items}
    if split.by_column:
        return _by_column(items, split.grouped)
    shares = {"train": 1 - split.val_fraction - split.test_fraction}
    shares |= {"val": split.val_fraction} if split.val_fraction else {}
    shares |= {"test": split.test_fraction} if split.test_fraction else {}
    if split.stratified:
        return _stratified(items, shares, sides or {})
    sets: dict[str, list[Item]] = {name: [] for name in shares}
    for item in items:
        sets[_side(item, split, sides or {})].append(item)
    return sets


def hashed(text: str, purpose: str) -> int:
    """Return a uniformly distributed 64-bit number; `purpose` makes the shuffle and the split independent."""
    key = purpose.encode()
    return int.from_bytes(
        hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8, key=key).digest()
    )


def _side(item: Item, split: Split, sides: Sides) -> str:
    """Return the set of an image by the hash of its group, or of its key if it has no group.

    So adding images never moves other images to another set.
    """
    if item.group in sides:
        return sides[item.group]
    place = hashed(item.group or item.key, "split") / 2**64
    if place < split.test_fraction:
        return "test"
    return "val" if place < split.test_fraction + split.val_fraction else "train"


def _by_column(items: list[Item], grouped: bool) -> dict[str, list[Item]]:
    """Return the images of each set that the table names."""
    sets: dict[str, list[Item]] = {name: [] for name in split_names.SIDES}
    first: dict[str, Item] = {}
    for item in items:
        other = first.setdefault(item.group, item) if grouped and item.group else item
        if other.split != item.split:
            raise UserError(
                f"the group {item.group!r} is in {other.split} ({other.path}) and in {item.split} "
                f"({item.path}); correct the split column, or leave out --group-column to allow that"
            )
        sets[item.split].append(item)
    return {name: members for name, members in sets.items() if members}


def _stratified(items: list[Item], shares: Mapping[str, float], sides: Sides) -> dict[str, list[Item]]:
    """Return sets that have each class in the same shares, as far as groups allow, which stay whole.

    The largest groups come first, in the order of their hashes among equals. Each goes to the set that lacks
    most of the group's classes, relative to what the set should have.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for i, item in enumerate(items):
        groups[item.group or f"\0{item.key}"].append(i)
    total = Counter(item.label for item in items)
    lacks = {name: {label: share * n for label, n in total.items()} for name, share in shares.items()}
    chosen = [""] * len(items)
    order = sorted(groups, key=lambda group: (-len(groups[group]), hashed(group.lstrip("\0"), "split")))
    for group in order:
        counts = Counter(items[i].label for i in groups[group])
        place = sides.get(group) or max(
            shares,
            key=lambda name: math.fsum(
                n * lacks[name][label] / (shares[name] * total[label]) for label, n in counts.items()
            ),
        )
        for label, n in counts.items():
            lacks[place][label] -= n
        for i in groups[group]:
            chosen[i] = place
    return {name: [item for item, of in zip(items, chosen, strict=True) if of == name] for name in shares}


def sides_of(items: list[Item], sets: Mapping[str, Dataset]) -> dict[str, str]:
    """Return the set in which each group of `items` has images already.

    Known are the groups that the sets keep, and those of the images that are in `items` again.
    """
    names = {item.group for item in items} - {""}
    by_hash = {key_hash(name): name for name in names}
    by_key = {key_hash(item.key): item.group for item in items if item.group} if names else {}
    sides: dict[str, str] = {}
    for side, dataset in sets.items():
        kept = [] if dataset.groups is None else np.unique(dataset.groups).tolist()
        again = np.unique(files.read(dataset)["key"]).tolist() if by_key else []
        for group in (*(by_hash.get(value) for value in kept), *(by_key.get(key) for key in again)):
            if group is not None:
                sides.setdefault(group, side)
    return sides


def refuse_split_folders(source: Path, paths: Iterable[str]) -> None:
    """Raise `UserError` if the folders to be used as classes have names of sets, such as train and val.

    `paths` are those of the images. Folders that hold a single folder each, such as `imagenet/` around
    `train/` and `val/`, are looked into.
    """
    folders, nested = {PurePosixPath(path).parent.parts for path in paths}, False
    while len({parts[:1] for parts in folders}) == 1 and all(len(parts) > 1 for parts in folders):
        first = next(iter(folders))[0]
        if split_names.side(first):
            break
        source, folders, nested = source / first, {parts[1:] for parts in folders}, True
    _refuse_sets(source, {parts[0] for parts in folders if parts}, nested)


def sets_within_classes(paths: Iterable[str]) -> list[str]:
    """Return the folders with names of sets, such as train and test, that lie directly in folders of
    classes, if these hold the images of at least two sets and no others.
    """
    folders = (PurePosixPath(path).parent.parts for path in paths)
    inner = {parts[1] if len(parts) > 1 else "" for parts in folders}
    sides = set(map(split_names.side, inner))
    return sorted(inner) if len(sides) > 1 and None not in sides else []


def _refuse_sets(source: Path, folders: set[str], nested: bool) -> None:
    """Raise `UserError` if the names of the folders in `source` are those of sets, of at least two if the
    folders are `nested` in one that could be a class.
    """
    found = {name: side for name in sorted(folders) if (side := split_names.side(name))}
    if not found or (len(set(found.values())) < 2 and (nested or len(found) < len(folders))):
        return
    each = "; ".join(
        f"isotorus pack {source / name} DEST/{side} --labels folder" for name, side in found.items()
    )
    raise UserError(
        f"{source} holds the sets of a split ({', '.join(found)}), which --labels folder would take for "
        f"classes; pack each with its own classes: {each}"
    )
