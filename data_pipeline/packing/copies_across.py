"""Near copies across the sets of a split, found from thumbnails that packing makes beside the shards."""

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset.index import key_hash
from data_pipeline.dataset.near_copies import thumbnails
from data_pipeline.dataset.near_copies.pairs import NearCopies
from data_pipeline.dataset_writer.part import Part
from data_pipeline.packing.shard import Task, file_keys, groups
from isotorus.errors import UserError, one_line


class Across(NamedTuple):
    """Near copies of which one image is in one set of a split, and the other image in another set."""

    images: int
    """How many images of the smaller sets have a near copy in another set; those of the largest set are not
    counted."""
    first: tuple[str, str]
    """Paths of two images that are near copies; empty texts if there are none."""

    def line(self, dest: Path) -> str:
        """Return a note about the copies; "" if there are none."""
        if not self.images:
            return ""
        return f"\nnote: {self._said()}; isotorus verify --duplicates {dest} lists them; {_REMEDY}"

    def refuse(self, folder: Path) -> None:
        """Raise `UserError` if there are any; `folder` is where the finished shards stay."""
        if self.images:
            raise UserError(
                f"--check-duplicates: {self._said()}; leave the option out to publish the sets as they are, "
                f"or delete {folder} and pack again: {_REMEDY}"
            )

    def _said(self) -> str:
        one, other = map(one_line, self.first)
        copies = "image is a near copy" if self.images == 1 else "images are near copies"
        return (
            f"{self.images} {copies} of images of another set, which makes scores too good (first: {one} is "
            f"like {other})"
        )


_REMEDY = "--drop-duplicates leaves copies out, and groups (--group-column) keep them on one side"


def across(tasks: dict[str, list[Task]], parts: dict[Path, Part]) -> Across:
    """Return the near copies across sets among the images that `tasks` have written.

    Images of one group are not compared with each other.
    """
    written = [
        (name, task) for name, of_set in tasks.items() for task in of_set if parts[task.target].samples
    ]
    sizes = [parts[task.target].samples for _, task in written]
    names = list(tasks)
    set_of = np.repeat([names.index(name) for name, _ in written], sizes)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "thumbnails.npy"
        thumbnails.create(file, sum(sizes))
        row = 0
        of_rows: list[NDArray[np.uint64]] = []
        for (_, task), size in zip(written, sizes, strict=True):
            thumbnails.write(file, row, np.load(task.thumbnails, allow_pickle=False))
            of_rows.append(_groups(task, size))
            row += size
        pairs = NearCopies(file, np.concatenate([np.zeros(0, np.uint64), *of_rows])).pairs
    pairs = pairs[set_of[pairs[:, 0]] != set_of[pairs[:, 1]]]
    if not len(pairs):
        return Across(0, ("", ""))
    largest = int(np.bincount(set_of).argmax())
    rows = np.unique(pairs)
    outside = rows[set_of[rows] != largest]
    starts = np.cumsum([0, *sizes])
    return Across(len(outside), (_path(written, starts, pairs[0, 1]), _path(written, starts, pairs[0, 0])))


def _groups(task: Task, size: int) -> NDArray[np.uint64]:
    """Return the group of each row of a shard, 0 for none."""
    keys = np.load(task.target.with_suffix(".npy"), allow_pickle=False)["key"]
    found = groups(task, keys, file_keys(task))
    return np.zeros(size, np.uint64) if found is None else found


def _path(written: list[tuple[str, Task]], starts: NDArray[np.int64], row: int) -> str:
    """Return the path of the file from which the image of a row comes."""
    number = int(np.searchsorted(starts, row, side="right")) - 1
    task = written[number][1]
    key = int(file_keys(task)[row - starts[number]])
    return next(item.path for item in task.items if key_hash(item.key) == key)
