"""The flat torus T^m: m angles in radians, each modulo 2π. Its curvature is 0 everywhere.

(cos θ₁, sin θ₁, …, cos θ_m, sin θ_m) embeds it isometrically in R^{2m}: a head that emits such pairs has T^m
as its space. Angles are tensors (…, m) of any real values, and shapes broadcast. 2π·sigmoid(z) is no
substitute for an angle: it never closes the circle, so no closed path of z winds.
"""

import math

import torch
from torch import Tensor

CANCELLED = 1e-6
"""Mean vectors shorter than this have no direction."""


def wrap(difference: Tensor) -> Tensor:
    """Return the representative of each angle in [-π, π]."""
    # remainder() would add rounding errors to angles that are in the interval already.
    wrapped = torch.remainder(difference + math.pi, 2 * math.pi) - math.pi
    return torch.where(difference.abs() <= math.pi, difference, wrapped)


def log(a: Tensor, b: Tensor) -> Tensor:
    """Return the shortest tangent vector at `a` that leads to `b`, with entries in [-π, π].

    For opposite angles there are two; one of them is returned.
    """
    return wrap(b - a)


def exp(a: Tensor, v: Tensor) -> Tensor:
    """Return the point in [-π, π] that the geodesic from `a` with velocity `v` reaches at time 1."""
    return wrap(a + v)


def geodesic(a: Tensor, b: Tensor) -> Tensor:
    """Return the length (…) of the shortest path, √Σ wrap(b_i - a_i)², at most π√m."""
    return torch.linalg.vector_norm(log(a, b), dim=-1)


def chordal(a: Tensor, b: Tensor) -> Tensor:
    """Return the Euclidean distance (…) of the (cos, sin) pairs, √Σ 4 sin²((b_i - a_i)/2).

    It is between 2/π and 1 times `geodesic`.
    """
    return torch.linalg.vector_norm(2 * torch.sin((b - a) / 2), dim=-1)


def circular_mean(angles: Tensor, dim: int, weights: Tensor | None = None) -> Tensor:
    """Return atan2(Σ w sin θ, Σ w cos θ) over `dim`, in [-π, π]; NaN where the points cancel.

    `weights`, non-negative, broadcast against `angles`; by default they are equal. This mean minimises
    squared chordal distances (Fisher 1993, Statistical Analysis of Circular Data, §2.3).
    """
    w = torch.ones_like(angles) if weights is None else weights.to(angles).expand_as(angles)
    total = w.sum(dim)
    cos, sin = (w * angles.cos()).sum(dim), (w * angles.sin()).sum(dim)
    mean = torch.atan2(sin, cos)
    return mean.masked_fill(torch.hypot(cos, sin) <= CANCELLED * total, math.nan)
