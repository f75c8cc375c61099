"""Two objectives with tori: a covariance laid out on a grid torus, and angles uniform on the flat torus T^m.

The first shapes second moments only. It does not make the embedding a torus and does not forbid a low rank;
`toroidal_covariance` says what costs nothing. The second tests the whole distribution of angles, by Weyl's
criterion, as SIGReg tests for a Gaussian.
"""

import functools
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from isotorus.device import constant
from isotorus.errors import UserError
from pretrain.distributed import sum_together
from pretrain.geometry import torus
from pretrain.objectives.batch import covariance, in_float32, own_count

Weighting = Literal["distance", "laplacian", "heat"]

# A shorter pair is taken to have no direction, as the gradient of its angle would be as large as 1/length.
SHORTEST_PAIR = 1e-6


@in_float32
def toroidal_covariance(
    z: Tensor, grid_size: int, weighting: Weighting = "distance", time: float = 1.0
) -> Tensor:
    """Return a penalty on the covariance C of `z` (B, D), whose dimensions are laid out on an N × N torus.

    The rows are those of all ranks. Dimension d lies at site d mod N². With P = D(D - 1), the penalty for
    each `weighting` is:

    - `distance`: Σ_{i≠j} W_ij C_ij² / P, where W is the wrapped Manhattan distance divided by its maximum
      (Cormier 2026, toroidal JEPA). Copies of a dimension at its own site cost nothing.
    - `laplacian`: the same with W = |L|, the off-diagonal part scaled to mean 1. A checkerboard of rank 2
      costs nothing if D = N² and N is even.
    - `heat`: ‖C - C*‖² / P with C* = e^{-time·L} scaled to unit diagonal. Its minimum is C = C*.

    Returns a scalar, equal on all ranks. Raises `UserError` for a grid with more sites than D.
    """
    return covariance_energy(covariance(z), grid_size, weighting, time)


@in_float32
def covariance_energy(matrix: Tensor, grid_size: int, weighting: Weighting, time: float = 1.0) -> Tensor:
    """Return the penalty of `toroidal_covariance` on a covariance matrix (D, D)."""
    width = len(matrix)
    if weighting not in ("distance", "laplacian", "heat"):
        raise UserError(f"weighting = {weighting!r}: must be 'distance', 'laplacian' or 'heat'")
    torus.check_grid_size(grid_size)
    if grid_size**2 > width:
        raise UserError(
            f"grid_size = {grid_size}: {grid_size**2} sites for {width} dimensions;"
            f" choose at most {int(width**0.5)} or widen the embedding"
        )
    goal = _goal(width, grid_size, weighting, time, matrix.dtype, matrix.device)
    cost = (matrix - goal).square() if weighting == "heat" else goal * matrix.square()
    return cost.sum() / (width * (width - 1))


@in_float32
def covariance_energy_null(
    width: int, grid_size: int, weighting: Weighting, time: float, like: Tensor
) -> Tensor:
    """Return (N - 1) · E[energy] over the covariances of N Gaussian samples of what the weighting aims at.

    For Gaussians of covariance Σ, entry (i, j) of the sample covariance has the mean Σ_ij and the variance
    (Σ_ii Σ_jj + Σ_ij²) / (N - 1). `heat` aims at Σ = C*, the others at independent dimensions of variance 1.
    Returns a scalar of the type of `like`, on its device.
    """
    goal = _goal(width, grid_size, weighting, time, like.dtype, like.device)
    cost = 1 + goal.square() if weighting == "heat" else goal
    return cost.sum() / (width * (width - 1))


@constant
def _goal(
    width: int, grid_size: int, weighting: Weighting, time: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return (D, D): the target C* for `heat`, otherwise the weights W with a zero diagonal."""
    if weighting == "heat":
        sites = torus.heat_kernel(grid_size, time)
    elif weighting == "distance":
        sites = torus.distance(grid_size)
        sites = sites / sites.max()
    else:
        sites = torus.laplacian(grid_size).abs()
        own = torch.diag(sites.diagonal())
        # As published, two dimensions at one site have the weight 4 of the diagonal, unscaled.
        sites = own + (sites - own) * (sites.numel() - len(sites)) / (sites - own).sum()
    site = torch.arange(width) % grid_size**2
    matrix = sites[site[:, None], site]
    return (matrix if weighting == "heat" else matrix.fill_diagonal_(0)).to(device, dtype)


@in_float32
def angles_from_pairs(pairs: Tensor) -> Tensor:
    """Return the angles (…, m) in (-π, π] of the pairs (…, m, 2), in float32 (float64 stays).

    A pair shorter than 1e-6 has angle 0 and no gradient. Raises `ValueError` for a wrong shape.
    """
    if pairs.ndim < 2 or pairs.shape[-1] != 2:
        raise ValueError(f"pairs must be (…, m, 2), not {tuple(pairs.shape)}")
    x, y = pairs.unbind(-1)
    directionless = x**2 + y**2 < SHORTEST_PAIR**2
    return torch.atan2(y.masked_fill(directionless, 0.0), x.masked_fill(directionless, 1.0))


@in_float32
def torus_uniformity(angles: Tensor, frequencies: Tensor, weights: Tensor) -> Tensor:
    """Return U = N Σ_k w_k |mean_j e^{i k·θ_j}|² for the angles (N, m) of all ranks.

    A Sobolev test of uniformity on T^m (Giné 1975): a distribution is uniform if and only if all its Fourier
    coefficients vanish. N is the global count. `frequencies` (F, m) are integers, none of them all zero;
    `weights` is (F,), see `torus_frequencies`. Under uniformity E[U] = Σ w_k for any N. Returns a scalar,
    equal on all ranks.
    """
    if angles.ndim != 2:
        raise ValueError(f"angles must be (samples, m), not {tuple(angles.shape)}")
    _refuse_zeros(frequencies)
    sums = _fourier_sums(angles.unsqueeze(0), frequencies, weights)
    sums, count = sum_together(sums, own_count(angles))
    return _uniformity(sums, count, weights)


@in_float32
def torus_prediction(angles: Tensor, n_global: int) -> Tensor:
    """Return the mean over views and images of Σ_i (1 - cos(θ_i - μ_i)) for `angles` (V, N, m).

    μ is the circular mean of the image's first `n_global` views. Where these cancel there is no mean: that
    angle counts 1 and has no gradient. The mean is over the images of all ranks. Raises `UserError` for an
    impossible `n_global`.
    """
    errors, count = sum_together(_circular_errors(angles, n_global), own_count(angles, 1))
    return errors.sum() / (count * len(angles))


def _circular_errors(angles: Tensor, n_global: int) -> Tensor:
    """Return this rank's sums over views and images of 1 - cos(θ - μ), (m,); see `torus_prediction`."""
    views = len(angles)
    if not 1 <= n_global <= views:
        raise UserError(f"n_global = {n_global}: of {views} views between 1 and {views} can be global")
    points = torch.stack([angles.cos(), angles.sin()])
    center = points[:, :n_global].mean(1)
    square = center.square().sum(0)
    cancelled = square < SHORTEST_PAIR**2
    length = square.masked_fill(cancelled, 1.0).sqrt()
    cos = (points * center[:, None]).sum(0) / length
    return (1 - cos.masked_fill(cancelled.expand_as(cos), 0.0)).sum((0, 1))


@in_float32
def toroidal_lejepa(
    angles: Tensor, n_global: int, weight: float, frequencies: Tensor, weights: Tensor
) -> dict[str, Tensor]:
    """Return (1 - weight) · prediction + weight · uniformity, the mean of one test for each view.

    `angles` is (V views, N images of this rank, m). Returns the scalars `loss`, `prediction` and
    `uniformity`, equal on all ranks. Raises `ValueError` for a wrong shape.
    """
    _refuse_zeros(frequencies)
    errors, uniformity = errors_and_uniformity(angles, angles, n_global, frequencies, weights)
    return weighed(errors, uniformity, weight)


@in_float32
def errors_and_uniformity(
    angles: Tensor, upright: Tensor, n_global: int, frequencies: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the mean of 1 - cos(d - μ) for each angle (m,) and the mean over views of U, on all ranks alike.

    `angles` θ are (V views, N images of this rank, m), and U tests them. `upright` d, of the same shape, are
    the angles that views have to agree about: θ itself, or θ with a known turn of each view taken back. μ is
    their circular mean over the first `n_global` views, as in `torus_prediction`. No frequency may be all
    zeros, which is not checked here. One collective call adds all sums. Raises `ValueError` for a wrong
    shape.
    """
    if angles.ndim != 3 or upright.shape != angles.shape:
        raise ValueError(
            f"angles must be (views, images, m), twice, not {tuple(angles.shape)} and {tuple(upright.shape)}"
        )
    sums = _fourier_sums(angles, frequencies, weights)
    sums, count, errors = sum_together(sums, own_count(angles, 1), _circular_errors(upright, n_global))
    return errors / (count * len(angles)), _uniformity(sums, count, weights)


def weighed(errors: Tensor, uniformity: Tensor, weight: float) -> dict[str, Tensor]:
    """Return `loss`, `prediction` and `uniformity` from the values of `errors_and_uniformity`."""
    prediction = errors.sum()
    loss = (1 - weight) * prediction + weight * uniformity
    return {"loss": loss, "prediction": prediction, "uniformity": uniformity}


@functools.cache
def chance_agreement(views: int) -> float:
    """Return the mean length of the mean of `views` random unit vectors in the plane.

    It is the mean of cos(θ - μ) for angles θ that say nothing: 1 for one view, 2/π for two, 0.52 for three.
    By ∫ (1 - J₀(s·x)) / x² dx = |s| over x > 0, it is ∫ (1 - J₀(x)^V) / x² dx / V (Pearson's random walk).
    """
    # SciPy is imported here because only turned views need it. This is in NumPy because `plan` runs it where
    # torch's tensors have no values.
    from scipy.special import j0

    x = np.linspace(0, 200, 40_001)[1:]
    integrand = (1 - j0(x) ** views) / x**2
    # At 0 the integrand is V/4; beyond the last point it is 1/x² up to oscillations.
    whole = x[0] * (views / 4 / 2 + integrand.sum() - integrand[-1] / 2)
    return float(whole + 1 / x[-1]) / views


def _refuse_zeros(frequencies: Tensor) -> None:
    """Raise ValueError for a frequency that is all zeros.

    Frequencies on an accelerator are not checked, because the check would have to wait for it.
    """
    if frequencies.device.type == "cpu" and not frequencies.any(dim=1).all():
        raise ValueError("a frequency is all zeros: its coefficient is 1 whatever the angles; leave it out")


def _fourier_sums(angles: Tensor, frequencies: Tensor, weights: Tensor) -> Tensor:
    """Return the sums of cos(k·θ) and of sin(k·θ) over this rank's `angles` (V, N, m), as (2, V, F)."""
    if frequencies.is_floating_point() or frequencies.shape != (len(weights), angles.shape[-1]):
        raise ValueError(
            f"frequencies must be integers ({len(weights)}, {angles.shape[-1]}),"
            f" not {frequencies.dtype} {tuple(frequencies.shape)}"
        )
    phase = angles @ frequencies.to(angles).T
    return torch.stack([phase.cos().sum(1), phase.sin().sum(1)])


def _uniformity(sums: Tensor, count: Tensor, weights: Tensor) -> Tensor:
    """Return the mean over views of the statistics U, from the sums (2, V, F) of all ranks' images."""
    coefficients = sums.square().sum(0) / count
    return (coefficients @ weights.to(coefficients)).mean()
