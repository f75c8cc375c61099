"""The images that every checkpoint is measured on."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from data_pipeline.dataset.index import Dataset
from eval_suite.features import embed
from eval_suite.inputs.checkpoints import EncoderDescription
from isotorus import randomness
from isotorus.randomness import generator


def draw(dataset: Dataset, count: int, seed: int) -> NDArray[np.int64]:
    """Which samples (n,) are looked at: all, or `count` of them drawn from the seed."""
    return np.asarray(randomness.rows(len(dataset), count, seed), dtype=np.int64)


def load(dataset: Dataset, rows: NDArray[np.int64], described: EncoderDescription) -> Tensor:
    """Those samples' centre views, normalised as the encoder expects, float32 (n, C, size, size).

    Raises UserError for a sample that cannot be read, and for another number of channels than the encoder's.
    """
    channels, size = described.channels, described.image_size
    embed.check_channels(channels, dataset)
    stacked = torch.stack([embed.read_views(dataset, row, channels, [size])[0] for row in rows.tolist()])
    mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (described.mean, described.std))
    return (stacked.float() / torch.iinfo(stacked.dtype).max - mean) / std


def turned(images: Tensor, angles: Tensor) -> Tensor:
    """Each image (n, C, S, S) turned by its angle (n,) in radians inside its inscribed disc, 0 outside.

    Only what lies in the disc is kept, as corners would give the angle away.
    """
    cos, sin = angles.cos(), angles.sin()
    zero = torch.zeros_like(cos)
    matrices = torch.stack(
        [torch.stack([cos, -sin, zero], dim=1), torch.stack([sin, cos, zero], dim=1)], dim=1
    ).to(images)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    turned = F.grid_sample(images, grid, align_corners=False)
    side = images.shape[-1]
    along = (torch.arange(side, device=images.device) + 0.5) / side * 2 - 1
    return turned * ((along[:, None] ** 2 + along**2) <= 1)


def random_angles(count: int, seed: int) -> Tensor:
    """Uniform on [0, 2π), float32 (count,)."""
    random = generator(seed, 7)
    return torch.from_numpy(random.uniform(0, 2 * math.pi, count).astype(np.float32))
