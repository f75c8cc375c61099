"""What goes into which shard, decided from the list of images alone before any is opened.

So every worker count writes the same bytes, and what a killed run has finished can be kept.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data_pipeline.dataset.description import Split
from data_pipeline.packing.listing import Item
from isotorus.errors import UserError

_OVERHEAD = 2048  # bytes of tar headers and padding around an image and its label, about


@dataclass(frozen=True)
class Plan:
    """Items of every shard, by name of the set; the name is empty if there is no split."""

    sets: dict[str, list[list[Item]]]
    classes: list[str]
    """Names in the order of their index."""
    split: Split | None

    @cached_property
    def fingerprint(self) -> str:
        """Equal for equal lists of images (paths, sizes, labels, columns) and equal options."""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for name, shards in self.sets.items():
            for shard in shards:
                items = [(item.path, item.size, item.label, item.extra, item.group) for item in shard]
                digest.update(json.dumps([name, items]).encode())
        return digest.hexdigest()


def make_plan(items: list[Item], classes: list[str], split: Split | None, shard_size: int) -> Plan:
    """Split, shuffle and cut into shards of about `shard_size` bytes; a set may be left empty.

    Raises `UserError` if two images have one key.
    """
    sets = _divide(_shuffle(items), split)
    return Plan({name: _cut(members, shard_size) for name, members in sets.items()}, classes, split)


def refuse_empty_sets(plan: Plan) -> None:
    """`UserError` if a set that was asked for would hold no image."""
    for name, shards in plan.sets.items():
        if not shards:
            assert plan.split is not None
            images = sum(len(shard) for shards in plan.sets.values() for shard in shards)
            raise UserError(
                f"the {name} set would be empty: {images} images at --val-fraction "
                f"{plan.split.val_fraction:g} --test-fraction {plan.split.test_fraction:g}; "
                "change the fractions or leave them out"
            )


def _hash(text: str, purpose: str) -> int:
    """A uniform 64-bit number; the purpose keeps the shuffle unrelated to the split."""
    key = purpose.encode()
    return int.from_bytes(
        hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8, key=key).digest()
    )


def _shuffle(items: list[Item]) -> list[Item]:
    """In the order of their keys' hashes: classes mix inside a shard, and may be read one after another."""
    hashes = np.fromiter((_hash(item.key, "shuffle") for item in items), np.uint64, len(items))
    order = np.argsort(hashes, kind="stable")
    for i in np.flatnonzero(np.diff(hashes[order]) == 0):
        one, other = sorted((items[order[i]], items[order[i + 1]]), key=lambda item: item.path)
        if one.key == other.key:
            raise UserError(
                f"{one.path} and {other.path} would have the same key {one.key!r}; a key is the path "
                "without extension, with _ for every other dot; rename one, or list what to pack in a CSV"
            )
    return [items[i] for i in order]


def _divide(items: list[Item], split: Split | None) -> dict[str, list[Item]]:
    """Membership depends on an image's group or key alone, so more images do not move the others."""
    if split is None:
        return {"": items}
    sets: dict[str, list[Item]] = {"train": []}
    if split.val_fraction:
        sets["val"] = []
    if split.test_fraction:
        sets["test"] = []
    for item in items:
        place = _hash(item.group or item.key, "split") / 2**64
        in_test, in_val = place < split.test_fraction, place < split.test_fraction + split.val_fraction
        sets["test" if in_test else "val" if in_val else "train"].append(item)
    return sets


def _cut(items: list[Item], shard_size: int) -> list[list[Item]]:
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
