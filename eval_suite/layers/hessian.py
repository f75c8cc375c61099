"""Curvatures of a loss over some parameters, by Lanczos on Hessian-vector products."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


class Curvatures(NamedTuple):
    """The ends of the Hessian's spectrum."""

    smallest: float
    largest: float


def curvatures(
    loss: Callable[[], Tensor], parameters: Sequence[Tensor], *, iterations: int = 12, seed: int = 0
) -> Curvatures:
    """The smallest and largest eigenvalue of the Hessian of `loss()` over `parameters`.

    The ends converge first: after `iterations` steps the smallest is an upper bound, the largest a lower
    one. Full reorthogonalisation; memory (iterations + a graph) times the parameters.
    """
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        gradient = _flat(torch.autograd.grad(loss(), parameters, create_graph=True, materialize_grads=True))

        def multiply(v: Tensor) -> Tensor:
            found = torch.autograd.grad(gradient @ v, parameters, retain_graph=True, materialize_grads=True)
            return _flat(found).detach()

        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(gradient.shape, generator=generator, dtype=gradient.dtype).to(gradient.device)
        return Curvatures(*lanczos_ends(multiply, start, iterations))


def lanczos_ends(multiply: Callable[[Tensor], Tensor], start: Tensor, iterations: int) -> tuple[float, float]:
    """The extreme Ritz values of a symmetric matrix that is known by its products with vectors."""
    basis = [start / start.norm()]
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    for _ in range(min(iterations, len(start))):
        image = multiply(basis[-1])
        diagonal.append(image @ basis[-1])
        spanned = torch.stack(basis)
        for _ in range(2):  # once leaves rounding errors that grow into ghosts
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


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.flatten() for x in tensors])
