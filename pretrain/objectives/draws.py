"""Draw random numbers that depend on (seed, step) alone, and so are the same on every rank."""

import numpy as np
import torch
from torch import Tensor

from isotorus.randomness import generator

# Each purpose has its own number, so that two draws of one step are independent.
DIRECTIONS = 1
FREQUENCIES = 2
TURNED_IMAGES = 3
TURNS = 4
HELD_OUT = 5


def draws(seed: int, step: int, purpose: int) -> np.random.Generator:
    """Return the generator for one purpose in one step."""
    return generator(seed, step, (0, 0, 0, purpose))


def directions(width: int, count: int, seed: int, step: int) -> Tensor:
    """Draw `count` directions, uniform on the unit sphere of R^width: columns of (width, count) float32."""
    columns = draws(seed, step, DIRECTIONS).standard_normal((width, count), dtype=np.float32)
    return torch.from_numpy(columns / np.linalg.norm(columns, axis=0))
