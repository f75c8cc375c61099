"""Characteristic sums in plain torch: powers of e^{i·spacing·x}, in tiles that stay in the cache."""

from collections.abc import Iterator

import torch
from torch import Tensor

# Below torch's grain of 32768 elements an operation stays on one thread. Thousands of short parallel
# regions cost more in waiting for each other, on busy cores, than they gain; and this much stays in the
# cache. On an accelerator the tile only bounds memory.
CPU_TILE = 2**14
DEVICE_TILE = 2**24


def forward(x: Tensor, spacing: float, knots: int) -> Tensor:
    """Σ cos and Σ sin at the knots; shapes as in `sigreg_sums`."""
    sums = x.new_empty(2, knots - 1, len(x))
    for rows in _tiles(x):
        unit = _unit(x[rows], spacing)
        power = unit.clone()
        powers = [power.sum(1)]
        for _ in range(2, knots):
            power *= unit
            powers.append(power.sum(1))
        sums[..., rows] = torch.view_as_real(torch.stack(powers)).movedim(-1, 0)
    return sums


def backward(x: Tensor, gradient: Tensor, spacing: float) -> Tensor:
    """The gradient Re Σ_k t_k (g_sin + i·g_cos) e^{i t_k x} at each x, by Horner's rule."""
    t = spacing * torch.arange(1, gradient.shape[1] + 1, dtype=x.dtype, device=x.device)[:, None]
    coefficients = torch.complex(t * gradient[1], t * gradient[0])[..., None]
    result = torch.empty_like(x)
    for rows in _tiles(x):
        unit = _unit(x[rows], spacing)
        total = torch.zeros_like(unit)
        for coefficient in reversed(coefficients[:, rows].unbind()):
            total.add_(coefficient).mul_(unit)
        result[rows] = total.real
    return result


def _unit(x: Tensor, spacing: float) -> Tensor:
    return torch.polar(torch.ones_like(x), spacing * x)


def _tiles(x: Tensor) -> Iterator[slice]:
    tile = CPU_TILE if x.device.type == "cpu" else DEVICE_TILE
    rows = max(1, tile // max(1, x.shape[1]))
    for start in range(0, len(x), rows):
        yield slice(start, start + rows)
