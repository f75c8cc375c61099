"""A block as a map f from tokens or feature maps to the same: how it stretches what is near a point.

`f` takes and gives (N, …) and treats the N samples apart from one another; results are (N,).
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Map = Callable[[Tensor], Tensor]


def spectral_norm(f: Map, x: Tensor, *, iterations: int = 15, seed: int = 0) -> Tensor:
    """The largest singular value of f's Jacobian at each of `x`: below 1 the block contracts there.

    Power iteration on JᵀJ, a Jacobian-vector and a vector-Jacobian product each time; a lower bound that
    rises to the value, slowly where the two largest are close.
    """
    direction = _unit(_draw(x, seed))
    norm = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    # The fused attention kernels have no forward-mode derivative.
    with sdpa_kernel(SDPBackend.MATH):
        pull_back = torch.func.vjp(f, x)[1]
        for _ in range(iterations):
            pushed = torch.func.jvp(f, (x,), (direction,))[1]
            norm = pushed.flatten(1).norm(dim=1)
            (direction,) = pull_back(pushed)
            direction = _unit(direction)
    return norm.detach()


@torch.no_grad()
def stability(f: Map, x: Tensor, *, relative: float = 1e-3, draws: int = 4, seed: int = 0) -> Tensor:
    """E ‖f(x + δ) - f(x)‖ / ‖δ‖ over random directions δ of length `relative`·‖x‖.

    1 for a rotation; for a linear map A in d dimensions about ‖A‖_F / √d.
    """
    lengths = _spread(x.flatten(1).norm(dim=1), x) * relative
    before, total = f(x), torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for draw in range(draws):
        shift = _unit(_draw(x, seed, draw + 1)) * lengths
        change = (f(x + shift) - before).flatten(1).norm(dim=1)
        total += change / shift.flatten(1).norm(dim=1).clamp_min(1e-30)
    return total / draws


def _draw(x: Tensor, seed: int, number: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    return torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)


def _unit(x: Tensor) -> Tensor:
    return x / _spread(x.flatten(1).norm(dim=1).clamp_min(1e-30), x)


def _spread(values: Tensor, x: Tensor) -> Tensor:
    """(N,) beside (N, …)."""
    return values.view(-1, *[1] * (x.ndim - 1))
