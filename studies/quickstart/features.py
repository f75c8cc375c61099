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
    run: Path, sizes: tuple[int, ...], untrained_seed: int | None = None
) -> dict[str, Vectors]:
    """The sets of a run's newest checkpoint at each image size, `stages@96` of 96 pixels.

    With `untrained_seed`, of the same encoder as that seed initialises it.
    """
    newest = max((run / "checkpoints").glob("step_*/encoder.json"))
    described = json.loads(newest.read_text())
    seed = described["seed"] if untrained_seed is None else untrained_seed
    model = build_encoder(described["name"], described["kwargs"], seed)
    if untrained_seed is None:
        model.load_state_dict(load_file(newest.with_name("encoder.safetensors")))
    found = {}
    for size in sizes:
        sets = encoder_sets(model, size, described["mean"][0], described["std"][0])
        found |= {f"{name}@{size}": x for name, x in sets.items()}
    return found


def raw(size: int) -> Vectors:
    """Grey values of the cell at `size` pixels a side."""
    return images(size).reshape(len(images(size)), -1).astype(np.float32) / 255


def histogram(bins: int = 32, size: int = 128) -> Vectors:
    """Shares of the cell's pixels in `bins` equal ranges of grey, as square roots."""
    flat = images(size).reshape(len(images(size)), -1).astype(np.int64) * bins // 256
    counts = np.stack([np.bincount(row, minlength=bins) for row in flat])
    return np.sqrt(counts / flat.shape[1]).astype(np.float32)


def hog(size: int, cell: int, orientations: int = 8) -> Vectors:
    """Histograms of oriented gradients (Dalal & Triggs 2005) by scikit-image, blocks of 2 × 2 cells."""
    sys.path.append("runs/site")
    from skimage.feature import hog as describe

    rows = [
        describe(x, orientations, (cell, cell), (2, 2), block_norm="L2-Hys", transform_sqrt=False)
        for x in images(size)
    ]
    return np.stack(rows).astype(np.float32)


def baselines() -> dict[str, Vectors]:
    """The descriptors that need no training, by name."""
    counts = histogram()
    fine, coarse = hog(64, 8), hog(128, 16)
    return {
        "pixels32": raw(32),
        "histogram": counts,
        "hog64": fine,
        "hog64+histogram": np.hstack([fine, counts]),
        "hog128+histogram": np.hstack([coarse, counts]),
    }
