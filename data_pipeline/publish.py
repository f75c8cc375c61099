"""Finished shards → a data set: moved into place, indexed, described."""

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.atomic import atomic, sync
from data_pipeline.index import DESCRIPTION, INDEX, Description, Extent, Shard
from data_pipeline.shard import Part

_ONE_GREY_LEVEL = 1 / 255


def publish(folder: Path, staged: dict[Path, Part], classes: list[str], plan: str, grey: bool) -> None:
    """Move the staged shards into `folder`; then write their index, and last dataset.json.

    Shards without a sample are left behind. What an earlier, interrupted call has moved stays moved.
    """
    parts = {shard: part for shard, part in staged.items() if part.samples}
    rows = [np.load(shard.with_suffix(".npy"), allow_pickle=False) for shard in parts]
    for number, shard_rows in enumerate(rows):
        shard_rows["shard"] = number
    index = np.concatenate(rows)
    shards = [
        Shard(name=shard_name(number), bytes=part.bytes, samples=part.samples, sha256=part.sha256)
        for number, part in enumerate(parts.values())
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for staged_shard, shard in zip(parts, shards, strict=True):
        if staged_shard.exists():
            staged_shard.replace(folder / shard.name)
    with atomic(folder / INDEX) as file:
        np.save(file, index)
    sync(folder)
    mean, std = _statistics(list(parts.values()), channels=1 if grey else 3)
    description = Description(
        count=len(index),
        classes=classes,
        class_counts=np.bincount(index["label"][index["label"] >= 0], minlength=len(classes)).tolist(),
        channels=1 if grey else 3,
        mean=mean,
        std=std,
        width=_extent(index["width"]),
        height=_extent(index["height"]),
        shards=shards,
        skipped=sum(len(part.skipped) for part in staged.values()),
        plan=plan,
    )
    with atomic(folder / DESCRIPTION) as file:
        file.write(description.model_dump_json(indent=1).encode())
    sync(folder)


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def _statistics(parts: list[Part], channels: int) -> tuple[list[float], list[float]]:
    """Mean and std of all pixels by channel, from exact integer sums; a std of at least one grey level."""
    mean, std = [], []
    for c in range(channels):
        histogram = [sum(counts) for counts in zip(*(part.histograms[c] for part in parts), strict=True)]
        pixels = sum(histogram)
        total = sum(value * count for value, count in enumerate(histogram))
        squares = sum(value**2 * count for value, count in enumerate(histogram))
        mean.append(total / pixels / 255)
        std.append(max(math.sqrt(squares * pixels - total**2) / pixels / 255, _ONE_GREY_LEVEL))
    return mean, std


def _extent(sides: NDArray[np.uint16]) -> Extent:
    return Extent(min=int(sides.min()), median=int(np.median(sides)), max=int(sides.max()))
