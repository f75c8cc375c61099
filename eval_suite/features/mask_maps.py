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


def extract(
    dataset: Dataset,
    size: int,
    square: Square | None,
    file: Path,
    samples: NDArray[np.int64] | None = None,
) -> MaskMaps:
    """Write the masks of `samples` (default: all) to a new .npy file, and return them mapped from it.

    They show the part of an image that the encoder sees: the largest centred square, or with a `square` the
    one of this physical size. The file has size² bytes for each sample.

    Raises UserError for masks that cannot be read.
    """
    known = samples is not None or dataset.description.masks is not None
    wanted = np.arange(len(dataset)) if samples is None else samples
    if not known and all(masks.read(dataset, i) is None for i in wanted[: masks.LOOKED_AT].tolist()):
        return MaskMaps(np.zeros((0, size, size), np.uint8), np.zeros(0, np.int64))
    scales = square and Scales(dataset, square.unit)
    whole = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=(len(wanted), size, size))
    found: list[int] = []
    for i in wanted.tolist():
        if (mask := masks.read(dataset, i)) is None:
            continue
        whole[len(found)] = center_mask(mask, size, square, scales.of(i) if scales else None)
        found.append(i)
        progress.doing(f"masks, {len(found):,} of {len(wanted):,} images")
    return MaskMaps(whole[: len(found)], np.array(found, np.int64))
