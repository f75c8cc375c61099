"""Two ways to a torus: a covariance laid out on a grid torus, and angles uniform on the flat torus T^m.

The covariance form shapes second moments only; it neither makes the embedding cloud a torus nor forbids
a low rank (`toroidal_covariance` says what costs nothing). The angles form is to the torus what SIGReg is
to the Gaussian: a test of the whole distribution, by Weyl's criterion.
"""

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from isotorus.errors import UserError
from pretrain.distributed import sum_over_ranks
from pretrain.geometry import torus
from pretrain.objectives.batch import as_statistic_dtype, covariance, sample_count

Weighting = Literal["distance", "laplacian", "heat"]

# A shorter pair has no direction: its angle is 0 and no gradient flows, instead of one of size 1/length.
SHORTEST_PAIR = 1e-6


def toroidal_covariance(
    z: Tensor, grid_size: int, weighting: Weighting = "distance", time: float = 1.0
) -> Tensor:
    """The penalty of the covariance C of `z` (B, D), all ranks' rows, on an N × N torus of dimensions.

    Dimension d sits at site d mod N². With P = D(D - 1):

    - `distance`: Σ_{i≠j} W_ij C_ij² / P, W the wrapped Manhattan distance over its maximum (Cormier 2026,
      toroidal JEPA). Copies of a dimension at its own site cost nothing.
    - `laplacian`: the same with W = |L|, its off-diagonal scaled to mean 1. A rank-2 checkerboard costs
      nothing at D = N², N even.
    - `heat`: ‖C - C*‖² / P with C* = e^{-time·L} at unit diagonal, whose optimum is C* itself.

    Returns a scalar, equal on all ranks. Raises `UserError` where the grid has more sites than D.
    """
    width = z.shape[-1]
    if weighting not in ("distance", "laplacian", "heat"):
        raise UserError(f"weighting = {weighting!r}: must be 'distance', 'laplacian' or 'heat'")
    torus.check_grid_size(grid_size)
    if grid_size**2 > width:
        raise UserError(
            f"grid_size = {grid_size}: {grid_size**2} sites for {width} dimensions;"
            f" choose at most {int(width**0.5)} or widen the embedding"
        )
    matrix = covariance(z)
    goal = _goal(width, grid_size, weighting, time, matrix.dtype, matrix.device)
    cost = (matrix - goal).square() if weighting == "heat" else goal * matrix.square()
    return cost.sum() / (width * (width - 1))


# Built once outside inference mode, whose tensors could not serve a training step later.
@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _goal(
    width: int, grid_size: int, weighting: Weighting, time: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The target C* of `heat`, or the weights of the others with a zero diagonal, as (D, D)."""
    if weighting == "heat":
        sites = torus.heat_kernel(grid_size, time)
    elif weighting == "distance":
        sites = torus.distance(grid_size)
        sites = sites / sites.max()
    else:
        sites = torus.laplacian(grid_size).abs()
        own = torch.diag(sites.diagonal())
        # As published, two dimensions of one site keep the diagonal's 4, unscaled.
        sites = own + (sites - own) * (sites.numel() - len(sites)) / (sites - own).sum()
    site = torch.arange(width) % grid_size**2
    matrix = sites[site[:, None], site]
    return (matrix if weighting == "heat" else matrix.fill_diagonal_(0)).to(device, dtype)


def angles_from_pairs(pairs: Tensor) -> Tensor:
    """The angles (…, m) in (-π, π] of the pairs (…, m, 2), in float32 (float64 stays).

    A pair shorter than 1e-6 has angle 0 and no gradient.
    """
    if pairs.ndim < 2 or pairs.shape[-1] != 2:
        raise ValueError(f"pairs must be (…, m, 2), not {tuple(pairs.shape)}")
    x, y = as_statistic_dtype(pairs).unbind(-1)
    directionless = x**2 + y**2 < SHORTEST_PAIR**2
    return torch.atan2(y.masked_fill(directionless, 0.0), x.masked_fill(directionless, 1.0))


def torus_uniformity(angles: Tensor, frequencies: Tensor, weights: Tensor) -> Tensor:
    """U = N Σ_k w_k |mean_j e^{i k·θ_j}|² of `angles` (N, m), all ranks' rows; N their global count.

    A Sobolev test of uniformity on T^m (Giné 1975) with the weights of `torus_frequencies`: uniform iff
    every Fourier coefficient vanishes. `frequencies` (F, m) are integers, none of them zero, `weights`
    (F,). Under uniformity E[U] = Σ w_k, whatever N. Returns a scalar, equal on all ranks.
    """
    if angles.ndim != 2:
        raise ValueError(f"angles must be (samples, m), not {tuple(angles.shape)}")
    return _uniformity(angles.unsqueeze(0), frequencies, weights)


def torus_prediction(angles: Tensor, n_global: int) -> Tensor:
    """The mean over views and images of Σ_i (1 - cos(θ_i - μ_i)), `angles` being (V, N, m).

    μ is the circular mean of an image's first `n_global` views. Where these cancel there is no mean, and
    that angle counts 1 with no gradient.
    """
    views = angles.shape[0]
    if not 1 <= n_global <= views:
        raise UserError(f"n_global = {n_global}: of {views} views between 1 and {views} can be global")
    angles = as_statistic_dtype(angles)
    points = torch.stack([angles.cos(), angles.sin()])
    center = points[:, :n_global].mean(1)
    square = center.square().sum(0)
    cancelled = square < SHORTEST_PAIR**2
    length = square.masked_fill(cancelled, 1.0).sqrt()
    cos = (points * center[:, None]).sum(0) / length
    error = 1 - cos.masked_fill(cancelled.expand_as(cos), 0.0)
    return sum_over_ranks(error.sum()) / (sample_count(angles, 1) * views)


def toroidal_lejepa(
    angles: Tensor, n_global: int, weight: float, frequencies: Tensor, weights: Tensor
) -> dict[str, Tensor]:
    """(1 - weight) · torus_prediction + weight · uniformity, the latter a mean over the views' own tests.

    `angles` is (V views, N images of this rank, m). Returns the scalars `loss`, `prediction` and
    `uniformity`, equal on all ranks.
    """
    if angles.ndim != 3:
        raise ValueError(f"angles must be (views, images, m), not {tuple(angles.shape)}")
    prediction = torus_prediction(angles, n_global)
    uniformity = _uniformity(angles, frequencies, weights)
    return {
        "loss": (1 - weight) * prediction + weight * uniformity,
        "prediction": prediction,
        "uniformity": uniformity,
    }


def _uniformity(angles: Tensor, frequencies: Tensor, weights: Tensor) -> Tensor:
    """The mean over the views of `angles` (V, N, m) of their statistics U."""
    if frequencies.is_floating_point() or frequencies.shape != (len(weights), angles.shape[-1]):
        raise ValueError(
            f"frequencies must be integers ({len(weights)}, {angles.shape[-1]}),"
            f" not {frequencies.dtype} {tuple(frequencies.shape)}"
        )
    # On an accelerator the look would make it wait, so there the caller's word is taken.
    if frequencies.device.type == "cpu" and not frequencies.any(dim=1).all():
        raise ValueError("a frequency is all zeros: its coefficient is 1 whatever the angles; leave it out")
    count = sample_count(angles, 1)
    with torch.autocast(angles.device.type, enabled=False):
        angles = as_statistic_dtype(angles)
        phase = angles @ frequencies.to(angles).T
        sums = sum_over_ranks(torch.stack([phase.cos().sum(1), phase.sin().sum(1)]))
    coefficients = sums.square().sum(0) / count
    return (coefficients @ weights.to(coefficients)).mean()
