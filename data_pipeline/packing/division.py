"""Divide images into the sets of a split: by hash, by a column of their table, or class by class."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import compress, groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset import files
from data_pipeline.dataset.description import Split
from data_pipeline.dataset.index import Dataset, key_hash
from data_pipeline.packing.listing import Item
from data_pipeline.storage.disk_list import DiskList, batches
from data_pipeline.tables import split_names
from isotorus.errors import UserError

_AT_ONCE = 2**14
Sides = Mapping[str, str]
"""The set that each group of images already packed is in, by group."""


def divide(
    items: DiskList[Item],
    split: Split | None,
    sides: Sides | None = None,
    joined: Mapping[str, str] | None = None,
) -> dict[str, DiskList[Item]]:
    """Return the images of each set of the split, in their order; the name is "" if there is no split.

    Images of a group in `sides` go to its set, and those of a group in `joined` go with the group that it
    names. Raises `UserError` if the table puts images of one group into
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
        return _stratified(items, shares, sides or {}, joined or {})
    sets = {name: DiskList[Item]() for name in shares}
    for item in items:
        sets[_side(item, split, sides or {}, joined or {})].append(item)
    return sets


def hashed(text: str, purpose: str) -> int:
    """Return a uniformly distributed 64-bit number; `purpose` makes the shuffle and the split independent."""
    key = purpose.encode()
    return int.from_bytes(
        hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8, key=key).digest()
    )


def shuffle_place(item: Item) -> int:
    """Return the place of an image in the order in which images are packed."""
    return hashed(item.key, "shuffle")


def _side(item: Item, split: Split, sides: Sides, joined: Mapping[str, str]) -> str:
    """Return the set of an image by the hash of its group, or of its key if it has no group.

    So adding images never moves other images to another set.
    """
    if item.group in sides:
        return sides[item.group]
    place = hashed(joined.get(item.group, item.group) or item.key, "split") / 2**64
    if place < split.test_fraction:
        return "test"
    return "val" if place < split.test_fraction + split.val_fraction else "train"


def _by_column(items: Iterable[Item], grouped: bool) -> dict[str, DiskList[Item]]:
    """Return the images of each set that the table names."""
    sets = {name: DiskList[Item]() for name in split_names.SIDES}
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


def _stratified(
    items: DiskList[Item], shares: Mapping[str, float], sides: Sides, joined: Mapping[str, str]
) -> dict[str, DiskList[Item]]:
    """Return sets that have each class in the same shares, as far as groups allow, which stay whole.

    The largest groups come first, in the order of their hashes among equals. Each goes to the set that lacks
    most of the group's classes, relative to what the set should have.
    """

    def group_of(item: Item) -> str:
        return joined.get(item.group, item.group)

    size_of = Counter(group_of(item) for item in items if item.group)
    total = Counter(item.label for item in items)
    lacks = {name: {label: share * n for label, n in total.items()} for name, share in shares.items()}
    sets = {name: DiskList[Item]() for name in shares}

    def place(item: Item) -> tuple[int, int, str]:
        name = group_of(item) or item.key
        return -size_of.get(group_of(item), 1), hashed(name, "split"), name

    for _, some in groupby(items.ordered(place), place):
        members = list(some)
        counts = Counter(item.label for item in members)
        chosen = sides.get(members[0].group) or max(
            shares,
            key=lambda name: math.fsum(
                n * lacks[name][label] / (shares[name] * total[label]) for label, n in counts.items()
            ),
        )
        for label, n in counts.items():
            lacks[chosen][label] -= n
        for item in members:
            sets[chosen].append(item)
    return {name: DiskList(members.ordered(shuffle_place)) for name, members in sets.items()}


def sides_of(items: DiskList[Item], sets: Mapping[str, Dataset]) -> dict[str, str]:
    """Return the set in which each group of `items` has images already.

    Known are the groups that the sets keep, and those of the images that are in `items` again.
    """
    sides: dict[str, str] = {}
    for side, dataset in sets.items():
        groups = np.zeros(0, np.uint64) if dataset.groups is None else np.unique(dataset.groups)
        keys = np.unique(files.read(dataset)["key"])
        for some in batches((item for item in items if item.group), _AT_ONCE):
            named = np.array([(key_hash(item.group), key_hash(item.key)) for item in some], np.uint64)
            known = _among(named[:, 0], groups) | _among(named[:, 1], keys)
            for item in compress(some, known):
                sides.setdefault(item.group, side)
    return sides


def _among(values: NDArray[np.uint64], ascending: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return which of the values occur in a sorted array."""
    places = np.searchsorted(ascending, values)
    return np.append(ascending, np.uint64(0))[places] == values  # 0 of another type would make floats


def refuse_split_folders(source: Path, items: Iterable[Item]) -> None:
    """Raise `UserError` if the folders to be used as classes have names of sets, such as train and val.

    Folders that hold a single folder each, such as `imagenet/` around `train/` and `val/`, are looked into.
    """
    depth = 0
    while True:
        names, deepest = set(), False
        for item in items:
            parts = item.path.split("/")
            names.add(parts[depth])
            deepest = deepest or len(parts) == depth + 2
        (first, *more) = names
        if more or deepest or split_names.side(first):
            break
        source, depth = source / first, depth + 1
    _refuse_sets(source, names, nested=depth > 0)


def sets_within_classes(items: Iterable[Item]) -> list[str]:
    """Return the folders with names of sets, such as train and test, that lie directly in folders of
    classes, if these hold the images of at least two sets and no others.
    """
    inner = set()
    for item in items:
        parts = item.path.split("/")
        if len(parts) < 3 or split_names.side(parts[1]) is None:
            return []
        inner.add(parts[1])
    return sorted(inner) if len(set(map(split_names.side, inner))) > 1 else []


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
