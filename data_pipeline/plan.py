"""What goes into which shard, decided from the list of images alone before any is opened.

So every worker count writes the same bytes, and what a killed run has finished can be kept.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property

from data_pipeline.errors import UserError
from data_pipeline.listing import Item

_OVERHEAD = 2048  # bytes of tar headers and padding around an image and its label, about


@dataclass(frozen=True)
class Plan:
    """Items of every shard, by name of the set; the name is empty if there is no split."""

    sets: dict[str, list[list[Item]]]
    classes: list[str]

    @cached_property
    def fingerprint(self) -> str:
        """Equal for equal lists of images (paths, sizes, labels, columns) and equal options."""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for name, shards in self.sets.items():
            for shard in shards:
                digest.update(json.dumps([name, [list(asdict(item).values()) for item in shard]]).encode())
        return digest.hexdigest()


def make_plan(
    items: list[Item], classes: list[str], val_fraction: float, test_fraction: float, shard_size: int
) -> Plan:
    """Split, shuffle and cut into shards of about `shard_size` bytes.

    Raises `UserError` if a set that was asked for would be empty.
    """
    sets = _split(items, val_fraction, test_fraction)
    for name, members in sets.items():
        if not members:
            raise UserError(
                f"the {name} set would be empty: {len(items)} images at --val-fraction {val_fraction:g} "
                f"--test-fraction {test_fraction:g}; change the fractions or leave them out"
            )
    return Plan({name: _cut(_shuffle(members), shard_size) for name, members in sets.items()}, classes)


def _hash(text: str, purpose: str) -> int:
    """A uniform 64-bit number; the purpose keeps the shuffle unrelated to the split."""
    key = purpose.encode()
    return int.from_bytes(
        hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8, key=key).digest()
    )


def _split(items: list[Item], val_fraction: float, test_fraction: float) -> dict[str, list[Item]]:
    """Membership depends on an image's group or key alone, so more images do not move the others."""
    if not val_fraction and not test_fraction:
        return {"": items}
    sets: dict[str, list[Item]] = {"train": []}
    if val_fraction:
        sets["val"] = []
    if test_fraction:
        sets["test"] = []
    for item in items:
        place = _hash(item.group or item.key, "split") / 2**64
        in_test, in_val = place < test_fraction, place < test_fraction + val_fraction
        sets["test" if in_test else "val" if in_val else "train"].append(item)
    return sets


def _shuffle(items: list[Item]) -> list[Item]:
    """In the order of their keys' hashes: classes mix inside a shard, and may be read one after another."""
    return sorted(items, key=lambda item: (_hash(item.key, "shuffle"), item.key))


def _cut(items: list[Item], shard_size: int) -> list[list[Item]]:
    shards: list[list[Item]] = [[]]
    room = shard_size
    for item in items:
        need = item.size + _OVERHEAD
        if need > room and shards[-1]:
            shards.append([])
            room = shard_size
        shards[-1].append(item)
        room -= need
    return shards
