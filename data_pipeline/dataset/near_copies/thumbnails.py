"""Small grey thumbnails of all images, in a file on the disk; near copies are found by comparing them.

A thumbnail has mean 0 and standard deviation 1, so brightness and contrast do not count. It takes 256 bytes
on the disk and no memory.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_pipeline import pool
from data_pipeline.dataset.index import Corrupt, Dataset
from data_pipeline.decoders.decode import largest_shrink
from data_pipeline.decoders.pixels import Pixels
from isotorus.errors import from_os_error

SIDE = 16
"""Side of a thumbnail in pixels."""
AT_ONCE = 256
"""Images that a worker reads in one task."""

_UNIT = 32  # value in a thumbnail for one standard deviation
_DECODED_SIDE = 256  # pixels; a JPEG is decoded at a reduced size whose shorter side has at least as many

Thumbnails = NDArray[np.int8]
"""Thumbnails (n, `SIDE`, `SIDE`); those of flat images, and of images that cannot be read, are zero."""


class _Task(NamedTuple):
    """Some images of one data set."""

    file: Path
    row: int
    """Row of the first image in the file."""
    dataset: Dataset
    indices: range


def thumbnail(image: Pixels | NDArray[np.float32]) -> Thumbnails:
    """Return the thumbnail (`SIDE`, `SIDE`) of an image (H, W, C): the mean over channels, averaged over
    areas of equal size.
    """
    # Channels are added one by one: this takes a tenth of the time of numpy's mean over the last axis.
    grey = image[..., 0].astype(np.float32)
    for channel in range(1, image.shape[2]):
        grey += image[..., channel]
    grey /= image.shape[2]
    small = np.asarray(Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BOX), np.float64)
    deviation = small.std()
    # Rounding in float32 gives even a flat image slightly different averages.
    if deviation <= 1e-5 * np.abs(small).max(initial=0):
        return np.zeros((SIDE, SIDE), np.int8)
    scaled = np.rint((small - small.mean()) / deviation * _UNIT)
    return scaled.clip(-127, 127).astype(np.int8)


def create(file: Path, count: int) -> None:
    """Make the file for `count` thumbnails, all of them zero; raises `UserError` if the disk has no room."""
    try:
        np.lib.format.open_memmap(file, "w+", np.int8, (count, SIDE, SIDE))
        # Otherwise a page that is written later, and has no room on the disk, ends the process by SIGBUS.
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
    except OSError as error:
        raise from_os_error(error, "writing thumbnails to the folder for temporary files (TMPDIR)") from error


def write(file: Path, rows: int | NDArray[np.int64], images: Sequence[Thumbnails]) -> None:
    """Write thumbnails into the given rows of the file, or from one row on; several processes may write
    different rows.
    """
    if len(images):
        where = slice(rows, rows + len(images)) if isinstance(rows, int) else rows
        np.load(file, mmap_mode="r+")[where] = images


def read(file: Path, rows: slice | NDArray[np.int64]) -> Thumbnails:
    """Return rows of the file. The file is mapped only during this call, so that its pages do not stay in
    memory.
    """
    return np.array(np.load(file, mmap_mode="r")[rows])


def of_sets(datasets: Sequence[Dataset], file: Path, workers: int, *, more: int = 0) -> int:
    """Write the thumbnails of all samples of the data sets, one after the other, into a new file that has
    room for `more` after them.

    Returns how many images cannot be read.
    """
    create(file, sum(map(len, datasets)) + more)
    tasks, row = [], 0
    for dataset in datasets:
        for start in range(0, len(dataset), AT_ONCE):
            indices = range(start, min(start + AT_ONCE, len(dataset)))
            tasks.append(_Task(file, row, dataset, indices))
            row += len(indices)
    if not tasks:
        return 0
    return sum(pool.run(_write_task, tasks, workers, "looking for copies", row))


def groups_of(dataset: Dataset) -> NDArray[np.uint64]:
    """Return the group of every sample (n,) as the hash of its name; 0 for none."""
    return np.zeros(len(dataset), np.uint64) if dataset.groups is None else dataset.groups


def _write_task(task: _Task) -> int:
    """Write the thumbnails of some samples; return how many cannot be read.

    Runs in a worker of `pool.run`.
    """
    images, unreadable = [], 0
    for index in task.indices:
        pool.count()
        row = task.dataset.rows[index]
        shrink = largest_shrink(min(row["width"], row["height"]) / _DECODED_SIDE)
        try:
            images.append(thumbnail(task.dataset.pixels(index, None, None, shrink)))
        except (Corrupt, ValueError):
            images.append(np.zeros((SIDE, SIDE), np.int8))
            unreadable += 1
    write(task.file, task.row, images)
    return unreadable
