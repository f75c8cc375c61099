"""Small images for the tests: smooth, so that they are plausible photos, and different for every seed."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, height: int = 40, width: int = 48, mode: str = "RGB") -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def save_pictures(folder: Path, names: list[str], mode: str = "RGB") -> None:
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(seed, height=40 + seed % 3, mode=mode).save(folder / name)


def png(seed: int, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    picture(seed, mode=mode).save(buffer, "png")
    return buffer.getvalue()
