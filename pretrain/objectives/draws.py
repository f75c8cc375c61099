"""Random numbers as a pure function of (seed, step): equal on every rank, with no generator state."""

import numpy as np
import torch
from torch import Tensor

# Philox streams: one a purpose, so that two draws of one step are independent.
DIRECTIONS = 1
FREQUENCIES = 2


def generator(seed: int, step: int, stream: int) -> np.random.Generator:
    """A Philox generator (Salmon et al. 2011) keyed by (seed, step), in its own stream."""
    key = np.array([seed % 2**64, step % 2**64], dtype=np.uint64)
    counter = np.array([0, 0, 0, stream], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def directions(width: int, count: int, seed: int, step: int) -> Tensor:
    """`count` directions uniform on the unit sphere of R^width, as the columns of (width, count) float32."""
    columns = generator(seed, step, DIRECTIONS).standard_normal((width, count), dtype=np.float32)
    return torch.from_numpy(columns / np.linalg.norm(columns, axis=0))
