"""The images that every checkpoint is measured on."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.dataset.index import Dataset
from data_pipeline.transforms.physical import Scales, check_square
from eval_suite.features import embed
from eval_suite.features.images import normalise, rotate, unit_range
from pretrain.models.description import EncoderDescription


def load(dataset: Dataset, rows: NDArray[np.int64], described: EncoderDescription) -> Tensor:
    """Read centre views of the samples `rows`, normalised for the encoder: float32 (n, C, size, size).

    Raises UserError for a sample that cannot be read, and for images whose channels the encoder cannot take.
    """
    channels, size = described.channels, described.image_size
    embed.check_channels(channels, dataset)
    check_square(described.square, dataset)
    scales = described.square and Scales(dataset, described.square.unit)
    views = (channels, [size], described.square, scales)
    stacked = torch.stack([embed.read_views(dataset, row, *views)[0] for row in rows.tolist()])
    return normalise(unit_range(stacked), described.mean, described.std)


def turned(images: Tensor, angles: Tensor) -> Tensor:
    """Rotate each image (n, C, S, S) by its angle (n,) in radians and set pixels outside its disc to 0.

    The disc is the largest circle inside the image. The corners around it would reveal the angle.
    """
    side = images.shape[-1]
    along = (torch.arange(side, device=images.device) + 0.5) / side * 2 - 1
    return rotate(images, angles, "zeros") * ((along[:, None] ** 2 + along**2) <= 1)
