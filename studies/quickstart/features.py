"""Cells to vectors: an encoder's feature sets, and the descriptors that it has to beat."""

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn

from data_pipeline.decoders.decode import decode
from data_pipeline.transforms.views import center_view
from eval_suite.features.handmade import BINS, SIZE, Handmade, ranges
from pretrain.models.encoder import build_encoder
from studies.quickstart.cells import WORK, cells, folder

Vectors = NDArray[np.float32]
BATCH = 128
LAST_STAGES = 3


@cache
def images(size: int) -> NDArray[np.uint8]:
    """All whole cells (n, size, size), as the evaluation cuts them."""
    file = WORK / f"images{size}.npy"
    if not file.exists():
        views = []
        for name in cells().names:
            image = decode((folder() / name).read_bytes(), 1, 8)
            views.append(center_view(image, size)[0].numpy())
        np.save(file, np.stack(views))
    return np.load(file)


@torch.inference_mode()
def encoder_sets(model: nn.Module, size: int, mean: float, std: float) -> dict[str, Vectors]:
    """`last`, the spatial mean of the last stage, and `stages`, mean and deviation of the last three.

    `stages` is, from early to late, (mean, standard deviation) over the pixels of each of the last three
    stages' maps, one after the other.
    """
    ready: Any = model.eval().to(memory_format=torch.channels_last)
    last, stages = [], []
    for start in range(0, len(images(size)), BATCH):
        x = torch.from_numpy(images(size)[start : start + BATCH]).float().div(255).sub(mean).div(std)
        x = x[:, None].contiguous(memory_format=torch.channels_last)
        maps = ready.forward_intermediates(x, indices=LAST_STAGES, intermediates_only=True)
        flat = [m.flatten(2).float() for m in maps]
        last.append(flat[-1].mean(2))
        stages.append(torch.cat([f(m) for m in flat for f in (_mean, _deviation)], dim=1))
    return {"last": torch.cat(last).numpy(), "stages": torch.cat(stages).numpy()}


def _mean(x: torch.Tensor) -> torch.Tensor:
    return x.mean(2)


def _deviation(x: torch.Tensor) -> torch.Tensor:
    return x.std(2, correction=0)


def checkpoint_sets(
    checkpoint: Path, names: list[str], untrained_seed: int | None = None
) -> dict[str, Vectors]:
    """The named sets of a checkpoint; `stages@96` are the stages of images of 96 pixels.

    With `untrained_seed`, of the same encoder as that seed initialises it.
    """
    described = json.loads((checkpoint / "encoder.json").read_text())
    seed = described["seed"] if untrained_seed is None else untrained_seed
    model = build_encoder(described["name"], described["kwargs"], seed)
    if untrained_seed is None:
        model.load_state_dict(load_file(checkpoint / "encoder.safetensors"))
    found = {}
    for size in {int(name.partition("@")[2]) for name in names}:
        sets = encoder_sets(model, size, described["mean"][0], described["std"][0])
        found |= {f"{name}@{size}": x for name, x in sets.items()}
    return {name: found[name] for name in names}


def raw(size: int) -> Vectors:
    """Grey values of the cell at `size` pixels a side."""
    return images(size).reshape(len(images(size)), -1).astype(np.float32) / 255


@cache
def handmade() -> dict[str, Vectors]:
    """The descriptors that `isotorus eval` compares with: HOG, histograms of greys and texture, and both."""
    sys.path.append("runs/site")
    describe = Handmade(ranges(8, (0.5,), (0.25,)))
    described = [describe(torch.from_numpy(image)[None]) for image in images(SIZE)]
    return {name: np.stack([one[name] for one in described]) for name in described[0]}


def texture() -> Vectors:
    """Histograms of greys and of uniform local binary patterns (Ojala et al. 2002) of radius 1, 2 and 3.

    This is more of what was seen to be strong on these images: square roots of 32 and 54 shares.
    """
    from skimage.feature import local_binary_pattern

    file = WORK / "patterns.npy"
    if not file.exists():
        rows = []
        for x in images(SIZE):
            row = []
            for radius in (1, 2, 3):
                codes = local_binary_pattern(x, 8 * radius, radius, "uniform").astype(np.int64)
                row.append(np.bincount(codes.ravel(), minlength=8 * radius + 2))
            rows.append(np.sqrt(np.concatenate(row) / x.size))
        np.save(file, np.stack(rows).astype(np.float32))
    return np.hstack([handmade()["histograms"][:, :BINS], np.load(file)])


def baselines() -> dict[str, Vectors]:
    """The descriptors that need no training, by name."""
    described = {f"handmade-{name}": x for name, x in handmade().items()}
    return {"pixels32": raw(32), **described, "texture": texture()}
