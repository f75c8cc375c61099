"""The masks of a data set, cropped and resized as an evaluation does with the images."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset import masks
from data_pipeline.dataset.index import Dataset
from data_pipeline.transforms.physical import Scales, Square
from data_pipeline.transforms.views import center_mask
from eval_suite import progress


class MaskMaps(NamedTuple):
    """The masks of those samples that have one."""

    classes: NDArray[np.uint8]
    """Number of the class of each pixel, 255 for none, (n, size, size); mapped from a file."""
    samples: NDArray[np.int64]
    """The samples (n,), ascending."""


def extract(dataset: Dataset, size: int, square: Square | None, file: Path) -> MaskMaps:
    """Write the masks to a new .npy file of n · size² bytes, and return them mapped from it.

    They show the part of an image that the encoder sees: the largest centred square, or with a `square` the
    one of this physical size.

    Raises UserError for masks that cannot be read.
    """
    known = dataset.description.masks is not None
    first = range(min(masks.LOOKED_AT, len(dataset)))
    if not known and all(masks.read(dataset, i) is None for i in first):
        return MaskMaps(np.zeros((0, size, size), np.uint8), np.zeros(0, np.int64))
    scales = square and Scales(dataset, square.unit)
    whole = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=(len(dataset), size, size))
    samples: list[int] = []
    for i in range(len(dataset)):
        if (mask := masks.read(dataset, i)) is None:
            continue
        whole[len(samples)] = center_mask(mask, size, square, scales.of(i) if scales else None)
        samples.append(i)
        progress.doing(f"masks, {len(samples):,} of {len(dataset):,} images")
    return MaskMaps(whole[: len(samples)], np.array(samples, np.int64))
