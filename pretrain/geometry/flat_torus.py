"""The flat torus T^m: m angles in radians, each modulo 2π. Its curvature is 0 everywhere.

(cos θ₁, sin θ₁, …, cos θ_m, sin θ_m) embeds it isometrically in R^{2m}; a head that emits such pairs has it
as its space. Angles are (…, m) tensors of any real values; what broadcasts may broadcast. 2π·sigmoid(z) does
not close the circle: no closed path of z winds.
"""

import math

import torch
from torch import Tensor

CANCELLED = 1e-6
"""A resultant shorter than this has no direction."""


def wrap(difference: Tensor) -> Tensor:
    """Each angle's representative in [-π, π]."""
    # remainder() leaves angles that are small already with their own rounding only.
    wrapped = torch.remainder(difference + math.pi, 2 * math.pi) - math.pi
    return torch.where(difference.abs() <= math.pi, difference, wrapped)


def log(a: Tensor, b: Tensor) -> Tensor:
    """The shortest tangent vector at `a` that leads to `b`, parts in [-π, π]; opposite angles have two."""
    return wrap(b - a)


def exp(a: Tensor, v: Tensor) -> Tensor:
    """Where the geodesic from `a` with velocity `v` is at time 1, in [-π, π]."""
    return wrap(a + v)


def geodesic(a: Tensor, b: Tensor) -> Tensor:
    """Length (…) of the shortest path, √Σ wrap(b_i - a_i)², at most π√m."""
    return torch.linalg.vector_norm(log(a, b), dim=-1)


def chordal(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distance (…) of the (cos, sin) pairs, √Σ 4 sin²((b_i - a_i)/2): 2/π to 1 of `geodesic`."""
    return torch.linalg.vector_norm(2 * torch.sin((b - a) / 2), dim=-1)


def circular_mean(angles: Tensor, dim: int, weights: Tensor | None = None) -> Tensor:
    """atan2(Σ w sin θ, Σ w cos θ) over `dim`, in [-π, π]; NaN where the points cancel and there is none.

    `weights`, non-negative, broadcast against `angles`; all equal by default. The mean of chordal distances;
    Fisher 1993, Statistical Analysis of Circular Data, §2.3.
    """
    w = torch.ones_like(angles) if weights is None else weights.to(angles).expand_as(angles)
    total = w.sum(dim)
    cos, sin = (w * angles.cos()).sum(dim), (w * angles.sin()).sum(dim)
    mean = torch.atan2(sin, cos)
    return mean.masked_fill(torch.hypot(cos, sin) <= CANCELLED * total, math.nan)
