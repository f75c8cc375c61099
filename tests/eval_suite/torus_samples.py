"""A checkpoint whose four angles are known functions of the image, and images that it reads without doubt."""

import math
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import hsv_to_rgb
from PIL import Image

from tests.eval_suite.eval_samples import pack_folder
from tests.eval_suite.linear_encoder import SIZE, kwargs, save_linear

KWARGS = kwargs(width=16)


def save_known_torus(folder: Path, *, step: int = 7) -> Path:
    """A linear encoder with four angles.

    They are the phases of the first circular harmonic (turns with the image), of the first Fourier mode
    in x and in y (turn as the image moves) and of the two colour differences (turns with the hue).
    """
    along = torch.arange(SIZE, dtype=torch.float64) - (SIZE - 1) / 2
    x, up = along.expand(SIZE, SIZE), -along[:, None].expand(SIZE, SIZE)
    phase = 2 * math.pi * along / SIZE
    flat = torch.ones(SIZE, SIZE, dtype=torch.float64)
    colour = torch.tensor([[1, -0.5, -0.5], [0, math.sqrt(0.75), -math.sqrt(0.75)]], dtype=torch.float64)
    grey = [x / SIZE, up / SIZE]
    waves = [phase.cos().expand(SIZE, SIZE), phase.sin().expand(SIZE, SIZE)]
    waves += [wave.T for wave in waves]
    maps = [m.expand(3, SIZE, SIZE) for m in grey]
    maps += [m.expand(3, SIZE, SIZE) for m in waves]
    maps += [c[:, None, None] * flat for c in colour]
    # The negatives' own scale keeps the sum off 0.
    return save_linear(folder, maps, torch.eye(8, 16), torch.zeros(8), negatives=0.5, step=step)


def spot(angle: float, hue: float, radius: float = 8.0, size: int = SIZE) -> np.ndarray:
    """uint8 (size, size, 3): a coloured spot on black in a direction (radians, y upwards) from the centre."""
    along = np.arange(size) - (size - 1) / 2
    away = (along - radius * math.cos(angle)) ** 2 + (-along[:, None] - radius * math.sin(angle)) ** 2
    colour = hsv_to_rgb((hue % 1, 0.9, 1.0))
    return (255 * np.exp(-away / 8)[..., None] * colour).round().astype(np.uint8)


def pack_spots(folder: Path, count: int, seed: int = 0) -> Path:
    """`count` spots of random direction and hue, in four classes by direction."""
    source = folder.with_name(f"{folder.name}-images")
    random = np.random.default_rng(seed)
    for i in range(count):
        direction = random.uniform(0, 2 * math.pi)
        home = source / f"quarter_{int(direction / (math.pi / 2))}"
        home.mkdir(parents=True, exist_ok=True)
        Image.fromarray(spot(direction, random.uniform())).save(home / f"{i}.png")
    return pack_folder(source, folder, "--labels", "folder")
