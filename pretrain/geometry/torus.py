"""The discrete torus Z_N × Z_N: N² sites with four neighbours each.

Site s lies at (s mod N, s div N). All matrices are float64, and all functions raise `UserError` for N below
2.
"""

import math

import torch
from torch import Tensor

from isotorus.errors import UserError


def check_grid_size(grid_size: int) -> None:
    """Raise `UserError` for a grid that is too small for a torus."""
    if grid_size < 2:
        raise UserError(f"grid_size = {grid_size}: a torus grid needs at least 2 sites a side")


def spectral_gap(grid_size: int) -> float:
    """Return the smallest non-zero eigenvalue of `laplacian(grid_size)`, 2 - 2 cos(2π/N)."""
    check_grid_size(grid_size)
    return 2 - 2 * math.cos(2 * math.pi / grid_size)


def eigenvalues(grid_size: int) -> Tensor:
    """Return all eigenvalues of `laplacian(grid_size)` in closed form, as (N, N).

    Entry [a, b] is 4 - 2 cos(2πa/N) - 2 cos(2πb/N).
    """
    check_grid_size(grid_size)
    ring = 2 - 2 * torch.cos(2 * math.pi * torch.arange(grid_size, dtype=torch.float64) / grid_size)
    return ring[:, None] + ring


def laplacian(grid_size: int) -> Tensor:
    """Return the graph Laplacian (N², N²), whose eigenvalues are 4 - 2 cos(2πa/N) - 2 cos(2πb/N).

    For N = 2 both neighbours in a direction are the same site, joined by two edges.
    """
    ring = _ring_laplacian(grid_size)
    identity = torch.eye(grid_size, dtype=torch.float64)
    return torch.kron(ring, identity) + torch.kron(identity, ring)


def distance(grid_size: int) -> Tensor:
    """Return the wrapped Manhattan distances (N², N²) between sites, at most 2⌊N/2⌋."""
    check_grid_size(grid_size)
    along = torch.arange(grid_size, dtype=torch.float64)
    apart = (along[:, None] - along).abs()
    ring = torch.minimum(apart, grid_size - apart)
    ones = torch.ones_like(ring)
    return torch.kron(ring, ones) + torch.kron(ones, ring)


def heat_kernel(grid_size: int, time: float) -> Tensor:
    """Return e^{-time·L} (N², N²), scaled to unit diagonal.

    All sites are alike, so the diagonal is constant. Up to the scale, the spectrum is the softmax of -time·λ.
    Raises `UserError` for a negative time.
    """
    if not (math.isfinite(time) and time >= 0):
        raise UserError(f"time = {time}: the heat kernel needs a time of at least 0")
    ring = torch.linalg.matrix_exp(-time * _ring_laplacian(grid_size))
    ring = ring / ring[0, 0]
    return torch.kron(ring, ring)


def _ring_laplacian(grid_size: int) -> Tensor:
    """Return the graph Laplacian (N, N) of a ring."""
    check_grid_size(grid_size)
    identity = torch.eye(grid_size, dtype=torch.float64)
    return 2 * identity - identity.roll(1, 0) - identity.roll(-1, 0)
