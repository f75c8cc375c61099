"""Sets of drawn shapes with masks, and tiny encoders, which the tests of several rooms use."""

import contextlib
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from data_pipeline.__main__ import main

NAMES = ("ground", "disc", "square")


def save_shapes(folder: Path, count: int, seed: int, *, without: int = 0) -> None:
    """Save images of 36 × 40 pixels, a bright disc and a dark square on noise, and masks of them.

    The last images, `without` of them, have no mask. In every mask, two rows at the top are not labelled.
    """
    random = np.random.default_rng(seed)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for i in range(count):
        mask = Image.new("L", (40, 36))
        draw = ImageDraw.Draw(mask)
        (x, y), (u, v) = random.integers(0, 24, (2, 2)).tolist()
        draw.rectangle([u, v, u + 11, v + 11], fill=2)
        draw.ellipse([x, y, x + 13, y + 13], fill=1)
        classes = np.array(mask)
        shade = np.array([110, 220, 20])[classes][..., None]
        pixels = np.clip(shade + random.normal(0, 15, (36, 40, 3)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"images/{i}.png")
        classes[:2] = 255
        if i < count - without:
            Image.fromarray(classes).save(folder / f"masks/{i}.png")


def pack_shapes(folder: Path, count: int, seed: int, *options: str, without: int = 0) -> Path:
    """Pack such images with their masks to `folder`/set, and return it."""
    save_shapes(folder, count, seed, without=without)
    return _packed(folder, *options)


def pack_centred(folder: Path, count: int, centre: int) -> Path:
    """Pack noise of 36 × 80 pixels whose masks have all classes, but in the centred square only `centre`."""
    random = np.random.default_rng(centre)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for i in range(count):
        mask = np.zeros((36, 80), np.uint8)
        mask[:, :10], mask[:, 70:], mask[:, 22:58] = 1, 2, centre
        pixels = random.integers(0, 256, (36, 80, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"images/{i}.png")
        Image.fromarray(mask).save(folder / f"masks/{i}.png")
    return _packed(folder)


def _packed(folder: Path, *options: str) -> Path:
    """Pack `folder`/images with `folder`/masks to `folder`/set, and return it."""
    rule = ",".join(f"{i}={name}" for i, name in enumerate(NAMES))
    arguments = ["pack", str(folder / "images"), str(folder / "set"), "--masks", str(folder / "masks")]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert main([*arguments, "--mask-classes", rule, "--workers", "1", *options]) == 0
    return folder / "set"
