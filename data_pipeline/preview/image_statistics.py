"""Decode a sample of the images and measure them: brightness, values, thumbnails."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_pipeline import pool
from data_pipeline.dataset.index import Corrupt, Dataset
from data_pipeline.decoders.decode import largest_shrink
from data_pipeline.decoders.pixels import Pixels
from data_pipeline.preview.duplicates import THUMBNAIL
from isotorus.randomness import generator

LOOKED_AT = 2000
"""Most images that are decoded."""
SHADES = 1024
"""Number of bins for pixel values, from black to white."""

_RUN = 8  # consecutive images that are drawn together
_TASK = 40  # images in a task
_SIDE = 256  # pixels that the shorter side must keep when a JPEG is decoded smaller

Depth = Literal[8, 16]


@dataclass(frozen=True)
class ImageStatistics:
    """Measurements of the n images that could be read, and messages about the others."""

    dataset: NDArray[np.int64]
    """Number of the data set that contains each image (n,)."""
    index: NDArray[np.int64]
    """Index of each image in its data set (n,)."""
    brightness: NDArray[np.float64]
    """Mean over pixels and channels of each image (n,), where white is 1."""
    constant: NDArray[np.bool_]
    """Whether each channel of an image has only one value (n,)."""
    thumbnails: NDArray[np.float32]
    """Grey thumbnails (n, `THUMBNAIL`, `THUMBNAIL`), the mean over channels."""
    shades: NDArray[np.int64]
    """Number of pixels of all images in each bin of values (C, `SHADES`)."""
    unreadable: list[str]
    """A message for each image that could not be read."""


class _Task(NamedTuple):
    """Some images of one data set, to be measured by one worker."""

    dataset: Dataset
    number: int
    indices: list[int]
    channels: int
    depth: Depth


class _Measured(NamedTuple):
    """Measurements of one image."""

    dataset: int
    sample: int
    brightness: float
    constant: bool
    thumbnail: NDArray[np.float32]


def measure_images(
    datasets: Sequence[Dataset], channels: int, depth: Depth, seed: int, workers: int
) -> ImageStatistics:
    """Decode and measure up to `LOOKED_AT` images of the data sets, drawn by `seed`, in `workers`
    processes.
    """
    numbers, indices = draw([len(dataset) for dataset in datasets], seed)
    tasks = []
    for number, dataset in enumerate(datasets):
        drawn = indices[numbers == number].tolist()
        tasks += [
            _Task(dataset, number, drawn[start : start + _TASK], channels, depth)
            for start in range(0, len(drawn), _TASK)
        ]
    parts = pool.run(_measure_task, tasks, workers, "looking at images", len(indices))
    seen = [image for images, _, _ in parts for image in images]
    return ImageStatistics(
        dataset=np.array([image.dataset for image in seen], dtype=np.int64),
        index=np.array([image.sample for image in seen], dtype=np.int64),
        brightness=np.array([image.brightness for image in seen], dtype=np.float64),
        constant=np.array([image.constant for image in seen], dtype=np.bool_),
        thumbnails=np.array([image.thumbnail for image in seen], dtype=np.float32).reshape(
            -1, THUMBNAIL, THUMBNAIL
        ),
        shades=np.sum([shades for _, shades, _ in parts], axis=0),
        unreadable=[reason for _, _, unreadable in parts for reason in unreadable],
    )


def draw(sizes: Sequence[int], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw up to `LOOKED_AT` samples from data sets of these sizes: numbers of the data sets, and indices in
    them.

    From large sets, runs of 8 consecutive images are drawn: similar images are often next to each other, and
    reads are longer.
    """
    total = sum(sizes)
    if total <= LOOKED_AT:
        rows = np.arange(total)
    else:
        random = generator(seed)
        starts = random.choice(total // _RUN, LOOKED_AT // _RUN, replace=False) * _RUN
        rows = np.sort((starts[:, None] + np.arange(_RUN)).ravel())
    ends = np.cumsum(sizes, dtype=np.int64)
    numbers = np.searchsorted(ends, rows, side="right").astype(np.int64)
    return numbers, rows - np.append(0, ends)[numbers]


def small(dataset: Dataset, index: int, channels: int | None, depth: Depth | None) -> Pixels:
    """Return an image, of which a large JPEG is decoded at a smaller size; raises Corrupt or ValueError."""
    row = dataset.rows[index]
    shrink = largest_shrink(min(row["width"], row["height"]) / _SIDE)
    return dataset.pixels(index, channels, depth, shrink)


def thumbnail(image: Pixels) -> NDArray[np.float32]:
    """Return a grey thumbnail (`THUMBNAIL`, `THUMBNAIL`) of an image (H, W, C), the mean over channels."""
    grey = Image.fromarray(image.mean(axis=2, dtype=np.float32))
    return np.asarray(grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))


def _measure_task(task: _Task) -> tuple[list[_Measured], NDArray[np.int64], list[str]]:
    """Measure images: returns the measurements, the counts of pixel values (C, `SHADES`), and messages
    about errors.
    """
    seen, unreadable = [], []
    shades = np.zeros((task.channels, SHADES), dtype=np.int64)
    for index in task.indices:
        pool.count()
        try:
            image = small(task.dataset, index, task.channels, task.depth)
        except Corrupt as error:
            unreadable.append(str(error))
            continue
        except ValueError as error:
            unreadable.append(f"{task.dataset.name(index)}: {error}")
            continue
        white = np.iinfo(image.dtype).max
        for channel, counts in enumerate(shades):
            values = image[..., channel].ravel().astype(np.int64) * SHADES // (white + 1)
            counts += np.bincount(values, minlength=SHADES)
        flat = bool((image == image[0, 0]).all())
        seen.append(_Measured(task.number, index, float(image.mean()) / white, flat, thumbnail(image)))
    return seen, shades, unreadable
