"""Derivatives of a block, and of a loss with respect to the block's weights.

A block is a map f from tokens or feature maps (N, …) to the same shape that treats its N samples separately;
measures of it have shape (N,). The products with derivatives are taken here and not by
`pretrain.geometry.jets`, whose functions run f again for each product: an iteration needs many products at
the same point, and keeps the graph of the first run instead.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Map = Callable[[Tensor], Tensor]


class Curvatures(NamedTuple):
    """Estimates of the smallest and the largest eigenvalue of a Hessian."""

    smallest: float
    largest: float


def spectral_norm(f: Map, x: Tensor, *, iterations: int = 15, seed: int = 0) -> Tensor:
    """Return the largest singular value of the Jacobian of f at each sample of `x` (N, …), shape (N,).

    For a matrix A it is ‖A‖₂; below 1 the block contracts distances. Computed by power iteration on JᵀJ. It
    is a lower bound that converges to the value, slowly if the two largest singular values are close.
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
    """Return the mean of ‖f(x + δ) - f(x)‖ / ‖δ‖ over random directions δ, for each sample of `x`, (N,).

    δ has the length `relative`·‖x‖. The value is 1 for a rotation, and about ‖A‖_F / √d for a matrix A on d
    dimensions.
    """
    lengths = _spread(x.flatten(1).norm(dim=1), x) * relative
    before, total = f(x), torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for draw in range(draws):
        shift = _unit(_draw(x, seed, draw + 1)) * lengths
        change = (f(x + shift) - before).flatten(1).norm(dim=1)
        total += change / shift.flatten(1).norm(dim=1).clamp_min(1e-30)
    return total / draws


def curvatures(
    loss: Callable[[], Tensor], parameters: Sequence[Tensor], *, iterations: int = 12, seed: int = 0
) -> Curvatures:
    """Return bounds of the smallest and largest eigenvalue of the Hessian of `loss()` in `parameters`.

    After `iterations` Lanczos steps the smallest is an upper bound and the largest a lower bound; with as
    many steps as parameters both are exact. Memory is `iterations` times the parameters, and the loss's
    graph.
    """
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        gradient = _flat(torch.autograd.grad(loss(), parameters, create_graph=True, materialize_grads=True))

        def multiply(v: Tensor) -> Tensor:
            products = torch.autograd.grad(
                gradient @ v, parameters, retain_graph=True, materialize_grads=True
            )
            return _flat(products).detach()

        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(gradient.shape, generator=generator, dtype=gradient.dtype).to(gradient.device)
        return Curvatures(*lanczos_ends(multiply, start, iterations))


def lanczos_ends(multiply: Callable[[Tensor], Tensor], start: Tensor, iterations: int) -> tuple[float, float]:
    """Return the smallest and largest Ritz value of a symmetric matrix after some Lanczos steps.

    `multiply` computes the product of the matrix with a vector, and `start` (n,) is the first vector. scipy's
    `eigsh` does this too, but iterates until it converges and on the CPU; here the number of products is
    fixed and vectors stay on their device.
    """
    basis = [start / start.norm()]
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    for _ in range(min(iterations, len(start))):
        image = multiply(basis[-1])
        diagonal.append(image @ basis[-1])
        spanned = torch.stack(basis)
        for _ in range(2):  # one pass leaves rounding errors, which produce false copies of eigenvalues
            image = image - spanned.T @ (spanned @ image)
        length = image.norm()
        if length <= 1e-9 * max(float(x.abs()) for x in diagonal):
            break
        beside.append(length)
        basis.append(image / length)
    size = len(diagonal)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for i in range(size):
        matrix[i, i] = diagonal[i]
        if i + 1 < size:
            matrix[i, i + 1] = matrix[i + 1, i] = beside[i]
    values = torch.linalg.eigvalsh(matrix)
    return float(values[0]), float(values[-1])


def _draw(x: Tensor, seed: int, number: int = 0) -> Tensor:
    """Return Gaussian noise of the shape of `x`, drawn on the CPU so that all devices get the same."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    return torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)


def _unit(x: Tensor) -> Tensor:
    """Scale each sample of `x` (N, …) to length 1."""
    return x / _spread(x.flatten(1).norm(dim=1).clamp_min(1e-30), x)


def _spread(values: Tensor, x: Tensor) -> Tensor:
    """Reshape `values` (N,) such that they multiply the samples of `x` (N, …)."""
    return values.view(-1, *[1] * (x.ndim - 1))


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    """Join tensors into one vector."""
    return torch.cat([x.flatten() for x in tensors])
