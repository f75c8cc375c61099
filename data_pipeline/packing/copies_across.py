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
        return f"\nnote: {self._said()}; isotorus verify --duplicates {dest} lists them"

    def refuse(self, folder: Path, by_column: bool) -> None:
        """Raise `UserError` if there are any; `folder` is where the finished shards stay, and `by_column`
        says that a table divides the images.
        """
        if not self.images:
            return
        one_side = "with a corrected column" if by_column else "with --group-duplicates (on one side)"
        raise UserError(
            f"{self._said()}; if they are different objects that look alike, the same command with "
            f"--allow-duplicates publishes them in seconds; else delete {folder} and pack again "
            f"{one_side} or --drop-duplicates (leaves copies out)"
        )

    def _said(self) -> str:
        one, other = map(one_line, self.first)
        copies = "image is a near copy" if self.images == 1 else "images are near copies"
        return (
            f"{self.images} {copies} of images of another set, which makes scores too good (first: {one} is "
            f"like {other})"
        )


def across(tasks: dict[str, list[Task]], parts: dict[Path, Part]) -> Across:
    """Return the near copies across sets among the images that `tasks` have written.

    Images of one group are not compared with each other.
    """
    written = [
        (name, task) for name, of_set in tasks.items() for task in of_set if parts[task.target].samples
    ]
    sizes = [parts[task.target].samples for _, task in written]
    starts = np.cumsum([0, *sizes])
    names = list(tasks)
    set_of = np.repeat([names.index(name) for name, _ in written], sizes)
    # The order is that of `copies.in_groups`, since it decides a little which pairs are found.
    order = np.argsort(np.concatenate([_keys(task) for _, task in written]), kind="stable")
    row_of = np.argsort(order)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "thumbnails.npy"
        thumbnails.create(file, sum(sizes))
        of_rows = np.zeros(sum(sizes), np.uint64)
        for (_, task), start, stop in zip(written, starts, starts[1:], strict=False):
            thumbnails.write(file, row_of[start:stop], np.load(task.thumbnails, allow_pickle=False))
            of_rows[row_of[start:stop]] = _groups(task)
        pairs = order[NearCopies(file, of_rows).pairs]
    pairs = pairs[set_of[pairs[:, 0]] != set_of[pairs[:, 1]]]
    if not len(pairs):
        return Across(0, ("", ""))
    largest = int(np.bincount(set_of).argmax())
    rows = np.unique(pairs)
    outside = rows[set_of[rows] != largest]
    one, other = sorted(pairs[0].tolist(), key=lambda row: set_of[row] == largest)
    return Across(len(outside), (_path(written, starts, one), _path(written, starts, other)))


def _keys(task: Task) -> NDArray[np.uint64]:
    """Return the `key_hash` of each row of a shard."""
    return np.asarray(np.load(task.target.with_suffix(".npy"), allow_pickle=False)["key"])


def _groups(task: Task) -> NDArray[np.uint64]:
    """Return the group of each row of a shard, 0 for none."""
    keys = _keys(task)
    found = groups(task, keys, file_keys(task))
    return np.zeros(len(keys), np.uint64) if found is None else found


def _path(written: list[tuple[str, Task]], starts: NDArray[np.int64], row: int) -> str:
    """Return the path of the file from which the image of a row comes."""
    number = int(np.searchsorted(starts, row, side="right")) - 1
    task = written[number][1]
    key = int(file_keys(task)[row - starts[number]])
    return next(item.path for item in task.items if key_hash(item.key) == key)
