"""Random numbers as a pure function of (seed, step): equal on every rank, with no generator state."""

import numpy as np
import torch
from torch import Tensor

from isotorus.randomness import generator

# One number a purpose, so that two draws of one step are independent.
DIRECTIONS = 1
FREQUENCIES = 2


def draws(seed: int, step: int, purpose: int) -> np.random.Generator:
    """The generator of one step's draws for one purpose."""
    return generator(seed, step, (0, 0, 0, purpose))


def directions(width: int, count: int, seed: int, step: int) -> Tensor:
    """`count` directions uniform on the unit sphere of R^width, as the columns of (width, count) float32."""
    columns = draws(seed, step, DIRECTIONS).standard_normal((width, count), dtype=np.float32)
    return torch.from_numpy(columns / np.linalg.norm(columns, axis=0))
