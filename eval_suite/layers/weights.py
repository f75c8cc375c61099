"""The weight matrices of a block: their rotation since the previous checkpoint, and their spectrum's tail."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

SMALLEST = 30
"""Smallest number of eigenvalues for fitting a tail."""


def matrices(module: nn.Module) -> dict[str, Tensor]:
    """Return the weights with two or more dimensions by name, as float64 matrices (out, in) on the CPU."""
    return {
        name: x.detach().double().cpu().flatten(1)
        for name, x in module.named_parameters()
        if x.ndim > 1 and min(x.flatten(1).shape) > 1
    }


def rotation(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    """Return the mean angle in degrees between the weight vectors (rows) of neurons at two checkpoints.

    It is near 90 for unrelated checkpoints. AdamW keeps the rotation of an update in balance (Kosson et al.
    2023, arXiv:2305.17212).
    """
    angles = []
    for name, old in before.items():
        new = after[name]
        # This form is exact for small angles, where arccos of the cosine loses digits.
        old, new = nn.functional.normalize(old, dim=1), nn.functional.normalize(new, dim=1)
        angles.append(2 * torch.atan2((new - old).norm(dim=1), (new + old).norm(dim=1)))
    return float(torch.cat(angles).mean().rad2deg())


def tail_exponent(values: NDArray[np.floating]) -> float:
    """Return the exponent α of a power law x^-α fitted to the largest of n `values`; nan for fewer than 30.

    Maximum likelihood above the threshold with the smallest Kolmogorov-Smirnov distance between data and fit:
    Clauset, Shalizi & Newman 2009, arXiv:0706.1062.
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
        # The empirical distribution jumps at each value; both sides of the jump are compared.
        steps = np.arange(len(tail) + 1) / len(tail)
        distance = max(np.abs(fitted - steps[:-1]).max(), np.abs(fitted - steps[1:]).max())
        if distance < best:
            best, exponent = distance, float(alpha)
    return exponent


def heavy_tail(module: nn.Module) -> float:
    """Return the median over a block's matrices W of the tail exponent of the eigenvalues of WᵀW.

    Martin & Mahoney 2021, arXiv:1810.01075, call 2 to 4 well trained. The range alone proves nothing: a
    random square Gaussian matrix has 3.5, and one with four times as many rows as columns 5 to 10. nan if all
    matrices are too small.
    """
    exponents = [tail_exponent(np.square(torch.linalg.svdvals(w).numpy())) for w in matrices(module).values()]
    fitted = [alpha for alpha in exponents if np.isfinite(alpha)]
    return float(np.median(fitted)) if fitted else float("nan")
