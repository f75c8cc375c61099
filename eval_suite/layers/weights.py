"""The matrices of a block: how far they turned since the checkpoint before, and their spectrum's tail."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

SMALLEST = 30
"""Fewest eigenvalues that a tail is fitted to."""


def matrices(module: nn.Module) -> dict[str, Tensor]:
    """Weights of two or more dimensions by name, float64 on the CPU, as (out, in)."""
    return {
        name: x.detach().double().cpu().flatten(1)
        for name, x in module.named_parameters()
        if x.ndim > 1 and min(x.flatten(1).shape) > 1
    }


def rotation(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    """Mean angle in degrees between the weight vectors (rows) of neurons at two checkpoints.

    What AdamW holds in balance, Kosson et al. 2023, arXiv:2305.17212; two unrelated checkpoints are near 90.
    """
    angles = []
    for name, old in before.items():
        new = after[name]
        # atan2 of both halves keeps small angles, which arccos loses.
        old, new = nn.functional.normalize(old, dim=1), nn.functional.normalize(new, dim=1)
        angles.append(2 * torch.atan2((new - old).norm(dim=1), (new + old).norm(dim=1)))
    return float(torch.cat(angles).mean().rad2deg())


def tail_exponent(values: NDArray[np.floating]) -> float:
    """α of a power law x^-α fitted to the largest of `values` (n,); nan below 30 of them.

    Maximum likelihood above the threshold that brings the Kolmogorov-Smirnov distance to its least, Clauset,
    Shalizi & Newman 2009, arXiv:0706.1062.
    """
    x = np.sort(np.asarray(values, dtype=np.float64))
    x = x[x > 0]
    if len(x) < SMALLEST:
        return float("nan")
    best, exponent = np.inf, float("nan")
    for start in range(len(x) - SMALLEST // 2):
        tail = x[start:]
        logs = np.log(tail / tail[0])
        if logs.sum() <= 0:
            break
        alpha = 1 + len(tail) / logs.sum()
        fitted = 1 - np.exp(-(alpha - 1) * logs)
        # The empirical distribution jumps at each value: both sides of the jump count.
        steps = np.arange(len(tail) + 1) / len(tail)
        distance = max(np.abs(fitted - steps[:-1]).max(), np.abs(fitted - steps[1:]).max())
        if distance < best:
            best, exponent = distance, float(alpha)
    return exponent


def heavy_tail(module: nn.Module) -> float:
    """The median over a block's matrices W of the tail exponent of WᵀW's eigenvalues.

    Martin & Mahoney 2021, arXiv:1810.01075, call 2 to 4 well trained. That says nothing by itself: a square
    Gaussian matrix has 3.5 too, as its eigenvalues pile up at 0; one four times as high 5 to 10. nan where
    all matrices are small.
    """
    found = [tail_exponent(np.square(torch.linalg.svdvals(w).numpy())) for w in matrices(module).values()]
    fitted = [alpha for alpha in found if np.isfinite(alpha)]
    return float(np.median(fitted)) if fitted else float("nan")
