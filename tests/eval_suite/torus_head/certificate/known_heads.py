"""Checkpoints whose angles are known functions of an image, and images that they read without doubt.

An image is a spot on grey, in a direction from the centre and with a colour of a hue, both of them angles.
"""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.eval_suite.eval_samples import pack_folder
from tests.eval_suite.linear_encoder import SIZE, save_linear

YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
HEADS = ("identity", "swapped", "sheared", "stuck", "invariant", "constant", "noise")


def save_head(
    folder: Path, head: str, *, actions: tuple[str, ...] = ("rotation", "hue"), **torus: object
) -> Path:
    """A checkpoint without a run. Both angles are phases of linear maps of the image to complex numbers:

    identity    Σ position · luminance, and Σ chroma: W is the identity
    swapped     the same two, exchanged: det W = -1
    sheared     Σ position · chroma, and Σ chroma: W = (1 1; 0 1)
    stuck       Σ position² · luminance, and Σ chroma: W = diag(2, 1)
    invariant   of the luminance of rings, which neither a rotation nor a turn of the hue changes
    constant    of biases alone
    noise       of random weights
    """
    along = torch.arange(SIZE, dtype=torch.float64) - (SIZE - 1) / 2
    position = torch.complex(along.expand(SIZE, SIZE), -along[:, None].expand(SIZE, SIZE)) / SIZE
    y, i, q = (torch.tensor(row, dtype=torch.float64)[:, None, None] for row in YIQ)
    chroma = torch.complex(i, q).expand(3, SIZE, SIZE)
    basic = {
        "luminance": 3 * position * y,
        "chroma": chroma,
        "sheared": 4 * position * chroma,
        "twice": 36 * position**2 * y,
    }
    radius = position.abs() * SIZE
    rings = [torch.exp(-((radius - r) ** 2) / 4) * y for r in (4, 8, 6, 11)]
    random = torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pairs = {
        "identity": (basic["luminance"], basic["chroma"]),
        "swapped": (basic["chroma"], basic["luminance"]),
        "sheared": (basic["sheared"], basic["chroma"]),
        "stuck": (basic["twice"], basic["chroma"]),
        "invariant": tuple(torch.complex(a - a.mean(), b - b.mean()) for a, b in (rings[:2], rings[2:])),
        "constant": (basic["luminance"], basic["chroma"]),
        "noise": (torch.complex(*random[:2]), torch.complex(*random[2:])),
    }[head]
    maps = [part for z in pairs for part in (z.real, z.imag)]
    projector = torch.eye(4, 8) if head != "constant" else torch.zeros(4, 8)
    bias = torch.zeros(4) if head != "constant" else torch.tensor([1.0, 0.5, -0.2, 1.0])
    described = {"actions": list(actions), "orders": [1] * len(actions), "pose_width": None}
    described |= {"border": "disc", "size": SIZE, **torus}
    return save_linear(folder, maps, projector, bias, torus=described)


def spot(direction: float, hue: float, radius: float, colour: float = 0.14) -> np.ndarray:
    """uint8 (SIZE, SIZE, 3): a spot of constant luminance and chroma `colour` on mid-grey."""
    along = np.arange(SIZE) - (SIZE - 1) / 2
    away = (along - radius * math.cos(direction)) ** 2 + (-along[:, None] - radius * math.sin(direction)) ** 2
    yiq = np.array([0.2, colour * math.cos(hue), colour * math.sin(hue)])
    pixels = 0.5 + np.exp(-away / 14)[..., None] * (np.linalg.inv(YIQ) @ yiq)
    return (255 * pixels.clip(0, 1)).round().astype(np.uint8)


def pack_spots(folder: Path, count: int, *, grey: int = 0, seed: int = 0) -> Path:
    """`count` spots of random direction, hue and distance, and `grey` more that have no hue; no labels."""
    source = folder.with_name(f"{folder.name}-images")
    source.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for i in range(count + grey):
        direction, hue = random.uniform(0, 2 * math.pi, 2)
        image = spot(direction, hue, random.uniform(7, 8), 0.14 if i < count else 0.0)
        Image.fromarray(image).save(source / f"{i}.png")
    return pack_folder(source, folder)
