"""Hyperbolic space in the Lorentz model, and how like a tree a metric is.

The model of curvature -1: x = (x₀, x₁ … x_d), x₀ = √(1 + x₁² + … + x_d²), with -x₀y₀ + Σ x_i y_i in place of
the dot product (Nickel & Kiela 2018, arXiv:1806.03417). A coordinate at radius ρ is as large as e^ρ/2, and
that product cancels to an error of e^{2ρ} times the dtype's: float32 loses distances of order 1 from ρ ≈ 8
on. Here all is computed in float64 from the space coordinates x₁ … x_d and returned in the given dtype;
`distance` does not cancel at all, `exp` and `log` to e^{2ρ}·10⁻¹⁶, as tangent vectors are as large too.
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
    """The point (…, d + 1) of the hyperboloid above `space` (…, d): x₀ = √(1 + ‖space‖²) goes first."""
    time = torch.hypot(
        torch.linalg.vector_norm(space.double(), dim=-1, keepdim=True), space.new_ones(1).double()
    )
    return torch.cat([time, space.double()], -1).to(space.dtype)


def distance(x: Tensor, y: Tensor) -> Tensor:
    """arcosh(x₀y₀ - Σ x_i y_i) (…) of points (…, d + 1).

    By sinh²(d/2) = sinh²((ρ - σ)/2) + sinh ρ sinh σ sin²(φ/2), which is exact for near and for far points.
    """
    return _distance(x[..., 1:].double(), y[..., 1:].double()).to(x.dtype)


def exp(x: Tensor, v: Tensor) -> Tensor:
    """Where the geodesic from `x` with velocity `v`, tangent at `x` (-x₀v₀ + Σ x_i v_i = 0), is at time 1.

    cosh(|v|) x + sinh(|v|) v/|v|; both are (…, d + 1).
    """
    x, v, dtype = lift(x[..., 1:].double()), v.double(), x.dtype
    length = _norm(x, v)
    moved = length.cosh() * x + torch.where(length > 0, length.sinh() / length.clamp(min=1e-300), 1.0) * v
    return lift(moved[..., 1:]).to(dtype)


def log(x: Tensor, y: Tensor) -> Tensor:
    """The tangent vector (…, d + 1) at `x` that `exp` takes to `y`, of length `distance`."""
    dtype, x, y = x.dtype, lift(x[..., 1:].double()), lift(y[..., 1:].double())
    far = _distance(x[..., 1:], y[..., 1:])[..., None]
    # y - cosh(d) x with cosh(d) - 1 = 2 sinh²(d/2), which keeps near points' digits.
    toward = y - x - 2 * (far / 2).sinh().square() * x
    scale = torch.where(far > 0, far / far.sinh().clamp(min=1e-300), 1.0)
    return (scale * toward).to(dtype)


def _distance(x: Tensor, y: Tensor) -> Tensor:
    """Of space coordinates."""
    r, s = torch.linalg.vector_norm(x, dim=-1), torch.linalg.vector_norm(y, dim=-1)
    apart = (F.normalize(x, dim=-1) - F.normalize(y, dim=-1)).square().sum(-1)
    square = ((r.asinh() - s.asinh()) / 2).sinh().square() + r * s * apart / 4
    # The square root has no gradient at 0; there the distance has none either.
    return 2 * square.clamp(min=1e-300).sqrt().asinh() * (square > 0)


def _norm(x: Tensor, v: Tensor) -> Tensor:
    """Lorentz length (…, 1) of `v`, tangent at `x`; its time part follows from the others."""
    inner = (x[..., 1:] * v[..., 1:]).sum(-1, keepdim=True) / x[..., :1]
    return (v[..., 1:].square().sum(-1, keepdim=True) - inner.square()).clamp(min=0).sqrt()


class Delta(NamedTuple):
    """2δ / diameter, the mean over subsamples, and the standard error of that mean."""

    relative: float
    error: float
    """NaN where there was one subsample."""


def gromov_delta(
    given: Array, *, distances: bool = False, points: int = 200, subsamples: int = 20, seed: int = 0
) -> Delta:
    """How unlike a tree a metric is: 2δ / diameter, in [0, 1], 0 for a tree, 1 for a circle's arcs.

    `given` is points (n, d) with Euclidean distances or, with `distances`, a matrix of them (n, n). δ is
    Gromov's for one base point, by the (max, min) product of Gromov products (Fournier et al. 2015), exact on
    each of `subsamples` draws of `points` rows; scaled as in Khrulkov et al. 2020, arXiv:1904.02239. δ over
    all rows is a maximum and at least that of any subsample, and up to twice as large for another base
    point; with n ≤ `points` the draws differ in their base alone. Raises UserError for fewer than 4 rows,
    rows that are all alike and what is not finite, ValueError for a matrix that is no metric's.
    """
    given = np.asarray(given, dtype=np.float64)
    if len(given) < 4:
        raise UserError(f"{len(given)} samples: hyperbolicity compares four points at a time; give 4 or more")
    if not np.isfinite(given).all():
        raise UserError("hyperbolicity of features that are not finite; leave out the rows that have them")
    if distances and (given.shape != given.shape[::-1] or (given != given.T).any() or np.diag(given).any()):
        raise ValueError(f"distances are a symmetric matrix with a zero diagonal, not this {given.shape}")
    found = []
    for draw in range(subsamples):
        # Key and order of draws as everywhere in the evaluation: rows, then the base among them.
        chosen = np.sort(generator(seed, draw).permutation(len(given))[:points])
        part = given[np.ix_(chosen, chosen)] if distances else cdist(given[chosen], given[chosen])
        base = int(generator(seed, draw).integers(len(part)))
        if part.max() > 0:
            found.append(2 * _delta(part, base) / part.max())
    if not found:
        raise UserError("all samples have the same features: a single point is neither tree nor circle")
    error = float(np.std(found, ddof=1) / math.sqrt(len(found))) if len(found) > 1 else math.nan
    return Delta(float(np.mean(found)), error)


def _delta(distance: Array, base: int) -> float:
    """max over x, y, z of min((x·z), (z·y)) - (x·y), Gromov products at the row `base`."""
    product = (distance[base][:, None] + distance[base] - distance) / 2
    best = np.full_like(product, -np.inf)
    for through in product:
        np.maximum(best, np.minimum(through[:, None], through), out=best)
    return max(float((best - product).max()), 0.0)
