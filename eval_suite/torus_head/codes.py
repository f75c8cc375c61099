"""Discrete codes of embeddings, compared with each other, for `isotorus eval codes`.

A code maps an embedding to a few digits, its address. The codes are the published winding code, bins of a
torus head's angles, and finite scalar quantisation (FSQ). For each one it is measured how many addresses the
images use, how often two images share one, within and between classes, and whether noise changes the address.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from eval_suite.inputs.checkpoints import Checkpoint
from isotorus.errors import UserError
from pretrain.geometry import codes
from pretrain.objectives.toroidal import angles_from_pairs

NOISE = (0.01, 0.1)
"""Standard deviations of the noise on each feature, relative to the feature's standard deviation."""


class Code(NamedTuple):
    """A discrete code of embeddings."""

    name: str
    cells: int
    """Number of possible addresses."""
    encode: Callable[[Tensor], Tensor]
    """Maps embeddings (n, d) to digits (n, m)."""


def known_codes(
    checkpoint: Checkpoint, x: np.ndarray, bins: Sequence[int], levels: Sequence[int]
) -> list[Code]:
    """Return the published code, FSQ and, for a torus head, a code for each number of `bins` of its angles.

    FSQ is applied to the standardised principal components of `x` (n, d), one for each entry of `levels`,
    since no projection was trained for it. Raises UserError for more levels than components.
    """
    if len(levels) > min(x.shape):
        raise UserError(
            f"--levels {','.join(map(str, levels))}: {len(levels)} digits, but {len(x)} embeddings of "
            f"{x.shape[1]} features have at most {min(x.shape)} components; give fewer"
        )
    pca = PCA(len(levels), svd_solver="full").fit(x.astype(np.float64))
    components = torch.from_numpy(pca.components_.T / np.sqrt(np.maximum(pca.explained_variance_, 1e-12)))
    mean = torch.from_numpy(pca.mean_)

    def scalars(rows: Tensor) -> Tensor:
        return codes.fsq((rows.double() - mean) @ components, levels)

    known = [
        Code("published winding code", 100, codes.published_winding_code),
        Code(f"FSQ {'×'.join(map(str, levels))}", math.prod(levels), scalars),
    ]
    projector, described = checkpoint.projector(), checkpoint.encoder.projector
    if projector is None or described is None or not described.angles:
        return known
    head, m = projector.eval(), described.angles

    def angles(rows: Tensor) -> Tensor:
        with torch.inference_mode():
            return angles_from_pairs(head(rows.float()).unflatten(-1, (m, 2)))

    def binned(count: int) -> Code:
        name = f"{count} bins of {m} {'angle' if m == 1 else 'angles'}"
        return Code(name, count**m, lambda x: codes.angular_bins(angles(x), count))

    return [*known, *map(binned, bins)]


def measure(known: Sequence[Code], x: Tensor, labels: np.ndarray, seed: int) -> list[dict[str, Any]]:
    """Measure each code on embeddings (n, d) with labels (n,), negative for none; ready for JSON."""
    rows = []
    classes = torch.from_numpy(np.array(labels, dtype=np.int64))
    for code in known:
        digits = code.encode(x)
        rows.append(
            {
                "name": code.name,
                "cells": code.cells,
                "occupancy": codes.occupancy(digits, code.cells)._asdict(),
                "collisions": codes.collisions(digits, code.cells, classes)._asdict(),
                "stable": [codes.stability(code.encode, x, noise, seed) for noise in NOISE],
            }
        )
    return rows
