"""Functions that pack a small data set, save a tiny checkpoint and run the command in this process."""

import contextlib
import csv
import io
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from data_pipeline.__main__ import main as pack_main
from eval_suite.__main__ import main
from isotorus.errors import exit_code

CLASSES = ("<b>x</b>", "$plain_1")
KWARGS = {
    "img_size": 32,
    "patch_size": 8,
    "in_chans": 3,
    "num_classes": 0,
    "depth": 2,
    "embed_dim": 24,
    "num_heads": 2,
}
ONE = ("--initialisations", "1")
"""One untrained encoder in place of three, which saves time."""


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


def run_command(*arguments: object) -> Outcome:
    """Run `python -m eval_suite …` in this process, without worker processes."""
    return run_other(*arguments, "--workers", "0")


def run_other(*arguments: object) -> Outcome:
    """Run a sub-command that has no option --workers."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["eval_suite", *map(str, arguments)])
        code = exit_code(main)
    return Outcome(code, out.getvalue(), err.getvalue())


def pack(folder: Path, labels: list[str], *, seed: int) -> Path:
    """Pack noise images with `labels` ('' for unlabelled); the second class is brighter at the top."""
    source = folder.with_name(f"{folder.name}-images")
    source.mkdir(parents=True)
    random = np.random.default_rng(seed)
    with (source / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label"])
        for i, label in enumerate(labels):
            pixels = random.integers(60, 180, (36, 40, 3))
            pixels[:18] += 25 * (label == CLASSES[1])
            Image.fromarray(pixels.astype(np.uint8)).save(source / f"{i}.png")
            writer.writerow([f"{i}.png", label])
    return pack_folder(source, folder, "--labels", str(source / "labels.csv"))


def pack_folder(source: Path, folder: Path, *options: str) -> Path:
    """Pack the images in `source` to `folder`, and return `folder`."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        arguments = ["pack", str(source), str(folder), *options, "--workers", "1"]
        assert exit_code(lambda: pack_main(arguments)) == 0
    return folder


def save_checkpoint(folder: Path, *, step: int = 7, complete: bool = True, **changes: Any) -> Path:
    """Save encoder.safetensors and encoder.json of a tiny ViT; `changes` are keys of encoder.json."""
    folder.mkdir(parents=True)
    torch.manual_seed(1)
    model = timm.create_model("vit_tiny_patch16_224", **KWARGS)
    save_file(model.state_dict(), folder / "encoder.safetensors")
    described = {"step": step, "config": {"name": "tiny"}} | changes
    write_description(folder, KWARGS, **described)
    if complete:
        (folder / "COMPLETE").touch()
    return folder


def write_description(folder: Path, kwargs: dict[str, Any], /, **changes: Any) -> None:
    """Write encoder.json of a ViT for images in colour; `changes` are further keys, and other values."""
    description = {
        "format": 1,
        "name": "vit_tiny_patch16_224",
        "kwargs": kwargs,
        "embedding_width": kwargs["embed_dim"],
        "image_size": kwargs["img_size"],
        "channels": 3,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.2, 0.2, 0.2],
        "seed": 0,
    }
    (folder / "encoder.json").write_text(json.dumps(description | changes))
