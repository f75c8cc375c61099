"""A checkpoint whose four angles are known functions of the image, and images that it reads without doubt."""

import contextlib
import io
import json
import math
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import hsv_to_rgb
from PIL import Image
from safetensors.torch import save_file

from data_pipeline.__main__ import main as pack_main
from isotorus.errors import exit_code

SIZE = 32
KWARGS = {
    "img_size": SIZE,
    "patch_size": SIZE,
    "in_chans": 3,
    "num_classes": 0,
    "depth": 0,
    "embed_dim": 16,
    "num_heads": 1,
    "class_token": False,
    "global_pool": "avg",
}


def save_known_torus(folder: Path, *, step: int = 7) -> Path:
    """A ViT without blocks: its one patch is a linear map of the image, its layer norm keeps directions.

    The angles are the phases of the first circular harmonic (turns with the image), of the first Fourier mode
    in x and in y (turn as the image moves) and of the two colour differences (turns with the hue).
    """
    folder.mkdir(parents=True)
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
    positive = torch.stack(maps)
    # With the negatives the mean is 0, so the layer norm only scales; their own scale keeps the sum off 0.
    weight = torch.cat([positive, -positive]).float()
    encoder = {
        "pos_embed": torch.zeros(1, 1, 16),
        "patch_embed.proj.weight": weight,
        "patch_embed.proj.bias": torch.zeros(16),
        "fc_norm.weight": torch.cat([torch.ones(8), 0.5 * torch.ones(8)]),
        "fc_norm.bias": torch.zeros(16),
    }
    save_file(encoder, folder / "encoder.safetensors")
    save_file({"0.weight": torch.eye(8, 16), "0.bias": torch.zeros(8)}, folder / "projector.safetensors")
    description = {
        "format": 1,
        "name": "vit_tiny_patch16_224",
        "kwargs": KWARGS,
        "embedding_width": 16,
        "image_size": SIZE,
        "channels": 3,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.2, 0.2, 0.2],
        "seed": 0,
        "step": step,
        "config": {"name": "known"},
        "projector": {"hidden": 1, "layers": 1, "width": 8, "angles": 4},
    }
    (folder / "encoder.json").write_text(json.dumps(description))
    return folder


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
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        arguments = ["pack", str(source), str(folder), "--labels", "folder", "--workers", "1"]
        assert exit_code(lambda: pack_main(arguments)) == 0
    return folder
