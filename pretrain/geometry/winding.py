"""Count how often a path on the flat torus T^m winds around each of its circles.

A closed path has one vector of integers, which names its homotopy class; a single point has none. Samples of
the path determine it as long as no angle moves by π or more between two samples.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pretrain.geometry.flat_torus import wrap


class Winding(NamedTuple):
    """Winding numbers, and how certain they are."""

    number: Tensor
    """(…, m) turns of each angle: integers for closed paths, real numbers for open ones."""
    margin: Tensor
    """(…, m) π minus the largest step between two samples, in [0, π]."""
    ambiguous: Tensor
    """(…, m) whether the margin is `least` or less: a step near π could have gone the other way."""


def winding(path: Tensor, closed: bool, least: float = 1e-3) -> Winding:
    """Return (1/2π) Σ wrap(θ_{t+1} - θ_t) for `path` (…, T, m), angles in radians at T samples.

    A closed path also steps from its last sample to its first. A larger `least`, in radians, flags more
    paths; NaN is always flagged. A true step longer than π cannot be seen in these samples; it shows only
    when other samples of the path give another number. Raises `ValueError` for fewer than two samples.
    """
    steps = _steps(path, closed)
    number = steps.sum(-2) / (2 * math.pi)
    margin = math.pi - steps.abs().amax(-2)
    return Winding(number.round() if closed else number, margin.clamp(min=0), ~(margin > least))


def unwrapped(path: Tensor, closed: bool) -> Tensor:
    """Return how far each angle has turned since the first sample, in turns, (…, T, m); T + 1 if closed.

    Raises `ValueError` as `winding` does.
    """
    turned = _steps(path, closed).cumsum(-2) / (2 * math.pi)
    return torch.cat([torch.zeros_like(turned[..., :1, :]), turned], -2)


def _steps(path: Tensor, closed: bool) -> Tensor:
    """Return the steps between successive samples, each wrapped to [-π, π]."""
    if path.ndim < 2 or path.shape[-2] < 2 or not path.shape[-1]:
        raise ValueError(
            f"a path is (…, samples, angles) with two samples or more and an angle, not {tuple(path.shape)}"
        )
    if not path.is_floating_point():
        raise ValueError(f"angles are floating-point numbers of radians, not {path.dtype}")
    path = path.double()
    if closed:
        path = torch.cat([path, path[..., :1, :]], -2)
    return wrap(path.diff(dim=-2))
