"""Hyperbolic space in the Lorentz model, and how close a metric is to that of a tree.

The model has curvature -1. Points are x = (x₀, x₁ … x_d) with x₀ = √(1 + x₁² + … + x_d²), and -x₀y₀ + Σ x_i
y_i takes the place of the dot product (Nickel & Kiela 2018, arXiv:1806.03417). At radius ρ a coordinate is as
large as e^ρ/2, and in that product numbers of size e^{2ρ} cancel: in float32, distances of order 1 are lost
from ρ ≈ 8 on. So everything here is computed in float64 from the coordinates x₁ … x_d and returned in the
dtype of the input. `distance` does not cancel at all. `exp` and `log` have errors of e^{2ρ}·10⁻¹⁶, because
tangent vectors are as large too.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from torch import Tensor
from torch.nn import functional as F

from isotorus.errors import UserError
from isotorus.randomness import generator

Array = NDArray[np.floating]


def lift(space: Tensor) -> Tensor:
    """Return the point (…, d + 1) of the hyperboloid above `space` (…, d).

    The coordinate x₀ = √(1 + ‖space‖²) comes first.
    """
    time = torch.hypot(
        torch.linalg.vector_norm(space.double(), dim=-1, keepdim=True), space.new_ones(1).double()
    )
    return torch.cat([time, space.double()], -1).to(space.dtype)


def distance(x: Tensor, y: Tensor) -> Tensor:
    """Return arcosh(x₀y₀ - Σ x_i y_i) (…) for points (…, d + 1).

    It is computed by sinh²(d/2) = sinh²((ρ - σ)/2) + sinh ρ sinh σ sin²(φ/2), with radii ρ and σ and the
    angle φ between the points, which is accurate for near and for far points.
    """
    return _distance(x[..., 1:].double(), y[..., 1:].double()).to(x.dtype)


def exp(x: Tensor, v: Tensor) -> Tensor:
    """Return the point that the geodesic from `x` with velocity `v` reaches at time 1, (…, d + 1).

    `v` is tangent at `x`: -x₀v₀ + Σ x_i v_i = 0. The point is cosh(|v|) x + sinh(|v|) v/|v|.
    """
    x, v, dtype = lift(x[..., 1:].double()), v.double(), x.dtype
    length = _norm(x, v)
    moved = length.cosh() * x + torch.where(length > 0, length.sinh() / length.clamp(min=1e-300), 1.0) * v
    return lift(moved[..., 1:]).to(dtype)


def log(x: Tensor, y: Tensor) -> Tensor:
    """Return the tangent vector (…, d + 1) at `x` that `exp` maps to `y`; its length is `distance`."""
    dtype, x, y = x.dtype, lift(x[..., 1:].double()), lift(y[..., 1:].double())
    far = _distance(x[..., 1:], y[..., 1:])[..., None]
    # This is y - cosh(d) x with cosh(d) - 1 = 2 sinh²(d/2), which stays accurate for near points.
    toward = y - x - 2 * (far / 2).sinh().square() * x
    scale = torch.where(far > 0, far / far.sinh().clamp(min=1e-300), 1.0)
    return (scale * toward).to(dtype)


def _distance(x: Tensor, y: Tensor) -> Tensor:
    """Return the distance of points given by their coordinates x₁ … x_d."""
    r, s = torch.linalg.vector_norm(x, dim=-1), torch.linalg.vector_norm(y, dim=-1)
    apart = (F.normalize(x, dim=-1) - F.normalize(y, dim=-1)).square().sum(-1)
    square = ((r.asinh() - s.asinh()) / 2).sinh().square() + r * s * apart / 4
    # At 0 the square root has an infinite gradient; the distance gets the gradient 0 there.
    return 2 * square.clamp(min=1e-300).sqrt().asinh() * (square > 0)


def _norm(x: Tensor, v: Tensor) -> Tensor:
    """Return the Lorentz length (…, 1) of `v`, tangent at `x`, from x₁ … x_d alone."""
    inner = (x[..., 1:] * v[..., 1:]).sum(-1, keepdim=True) / x[..., :1]
    return (v[..., 1:].square().sum(-1, keepdim=True) - inner.square()).clamp(min=0).sqrt()


class Delta(NamedTuple):
    """2δ / diameter: the mean over subsamples, and its standard error."""

    relative: float
    error: float
    """NaN with a single subsample."""


def gromov_delta(
    given: Array, *, distances: bool = False, points: int = 200, subsamples: int = 20, seed: int = 0
) -> Delta:
    """Return how unlike a tree a metric is: 2δ / diameter in [0, 1], 0 for a tree, 1 for arcs of a circle.

    `given` is points (n, d) with Euclidean distances or, with `distances=True`, a matrix of distances (n, n).
    δ is Gromov's for one base point, computed by the (max, min) product of Gromov products (Fournier et al.
    2015), exactly for each of `subsamples` draws of `points` rows, and scaled as in Khrulkov et al. 2020,
    arXiv:1904.02239. δ over all rows is at least that of any subsample, and up to twice as large for another
    base point. If n ≤ `points`, the draws differ in their base point alone. Raises `UserError` for fewer than
    4 rows, equal rows and values that are not finite, and `ValueError` for a matrix that is not a metric's.
    """
    given = np.asarray(given, dtype=np.float64)
    if len(given) < 4:
        raise UserError(f"{len(given)} samples: hyperbolicity compares four points at a time; give 4 or more")
    if not np.isfinite(given).all():
        raise UserError("hyperbolicity of features that are not finite; leave out the rows that have them")
    if distances and (given.shape != given.shape[::-1] or (given != given.T).any() or np.diag(given).any()):
        raise ValueError(f"distances are a symmetric matrix with a zero diagonal, not this {given.shape}")
    deltas = []
    for draw in range(subsamples):
        # First the rows are drawn, then the base point among them.
        chosen = np.sort(generator(seed, draw).permutation(len(given))[:points])
        part = given[np.ix_(chosen, chosen)] if distances else cdist(given[chosen], given[chosen])
        base = int(generator(seed, draw).integers(len(part)))
        if part.max() > 0:
            deltas.append(2 * _delta(part, base) / part.max())
    if not deltas:
        raise UserError("all samples have the same features: a single point is neither tree nor circle")
    error = float(np.std(deltas, ddof=1) / math.sqrt(len(deltas))) if len(deltas) > 1 else math.nan
    return Delta(float(np.mean(deltas)), error)


def _delta(distance: Array, base: int) -> float:
    """Return max over x, y, z of min((x·z), (z·y)) - (x·y), with Gromov products at the row `base`."""
    product = (distance[base][:, None] + distance[base] - distance) / 2
    best = np.full_like(product, -np.inf)
    for through in product:
        np.maximum(best, np.minimum(through[:, None], through), out=best)
    return max(float((best - product).max()), 0.0)
