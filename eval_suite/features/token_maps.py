"""Patch tokens of an encoder, or the last map of a ConvNet, for every image of a data set, kept on disk.

The tokens of n images take n · tokens · width · 2 bytes of disk as float16: 1.2 GB for 50,000 images of
64 tokens and width 192. They are memory-mapped, and only a batch at a time is in memory.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data_pipeline.dataset.index import Dataset
from eval_suite import progress
from eval_suite.attempts import Unmeasurable
from eval_suite.features import embed
from eval_suite.features.representation import Representation
from pretrain.models.feature_sets import MAP, map_of


class Tokens(NamedTuple):
    """The tokens of some samples of a data set."""

    x: NDArray[np.float16]
    """(n, tokens, width), row after row of the grid; memory-mapped."""
    grid: tuple[int, int]
    """Height and width of the grid of tokens."""


class TokenMap(nn.Module):
    """Maps images (N, C, H, W) to a map of tokens (N, width, h, w), as the feature set `map`.

    It is that of `pretrain.models.feature_sets.map_of`; for raw pixels, it is the image itself.
    """

    def __init__(self, features: nn.Module, stages: int) -> None:
        super().__init__()
        self.encoder: Any = features.encoder
        self.stages = stages

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the map in float32; raises Unmeasurable for an encoder that gives none."""
        if isinstance(self.encoder, nn.Flatten):
            return {MAP: images.float()}
        if not hasattr(self.encoder, "forward_intermediates"):
            raise Unmeasurable(
                "the encoder gives no patch tokens and no maps (forward_intermediates of timm)"
            )
        return {MAP: map_of(self.encoder, images, self.stages)}


def extract(
    r: Representation,
    dataset: Dataset,
    samples: NDArray[np.int64],
    file: Path,
    device: torch.device,
    *,
    stages: int,
    batch_size: int,
    workers: int,
) -> Tokens:
    """Write the tokens of these samples to a new .npy file, and return them mapped from it.

    `stages` is that of `TokenMap`.

    Raises Unmeasurable if the encoder gives no tokens, if they are not finite in float16 or if the disk has
    no room for them, and UserError for images that cannot be read.
    """
    if r.describe is not None:
        raise Unmeasurable("descriptors of whole images have no patch tokens")
    mapped = representation(r, stages)
    height, across, width = shape_of(mapped, device)
    shape = (len(samples), height * across, width)
    _check_room(file.parent, 2 * int(np.prod(shape)))
    x: NDArray[np.float16] = np.lib.format.open_memmap(file, mode="w+", dtype=np.float16, shape=shape)
    batches = [samples[i : i + batch_size].tolist() for i in range(0, len(samples), batch_size)]
    done = 0
    for batch in embed.stream([mapped], dataset, batches, device, workers):
        if batch.damaged:
            raise Unmeasurable(next(iter(batch.damaged.values())))
        progress.doing(f"tokens of {r.name}, {done:,} of {len(samples):,} images")
        rows = batch.vectors[0][MAP].flatten(2).transpose(1, 2)
        if not (rows.abs() < torch.finfo(torch.float16).max).all():
            raise Unmeasurable("some tokens are not finite in float16")
        x[done : done + len(rows)] = rows.half().numpy()
        done += len(rows)
    return Tokens(x, (height, across))


def representation(r: Representation, stages: int) -> Representation:
    """Return what gives the map of the tokens of a representation's encoder alone."""
    return replace(r, build=lambda: TokenMap(r.model, stages), sets=(MAP,), width=None)


def shape_of(mapped: Representation, device: torch.device) -> tuple[int, int, int]:
    """Return the rows and columns of the grid of a map, and the width of a token.

    Raises Unmeasurable for an encoder that gives no map.
    """
    mapped.model.to(device)
    blank = torch.zeros(1, mapped.channels, mapped.size, mapped.size, dtype=torch.uint8, device=device)
    with torch.inference_mode():
        _, width, height, across = mapped.embed(blank)[MAP].shape
    return height, across, width


def _check_room(folder: Path, need: int) -> None:
    """Raise Unmeasurable if the disk has less free space than `need` bytes."""
    free = shutil.disk_usage(folder).free
    if need > free:
        raise Unmeasurable(
            f"its tokens take {need / 1e9:.1f} GB in {folder}, where {free / 1e9:.1f} GB are free; make "
            "room there, or use a folder on another disk"
        )
