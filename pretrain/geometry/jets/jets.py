"""Derivatives along a direction: k-jets by Taylor mode, and products with Jacobian and Hessian.

A jet of order 1 is arithmetic with dual numbers a + bε, ε² = 0. A jet of order k takes one pass with
truncated Taylor series, at the cost of O(k²) products (Griewank & Walther, Evaluating Derivatives, 2008, ch.
13; Bettencourt, Johnson & Duvenaud 2019). Attention is computed as matrix products, since fused kernels have
no forward mode.

`jet` replaces nested `torch.func.jvp`, whose cost at least doubles with each order: for a ViT-Ti/16 it is
equally fast at order 1, 2.4 times as fast at order 2 and 9.5 times at order 4 (`python
benchmarks/geometry/jets.py --batch 1 --turns 2`, in benchmarks/RESULTS.md). Nested forward mode is also wrong
from the second order on where torch's rule omits a term, as for layer norm (pytorch issue 196700).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from isotorus.errors import UserError
from pretrain.geometry.jets.taylor import Series, value

HIGHEST = 4

Function = Callable[[Tensor], Tensor]


@torch.no_grad()
def jet(f: Function, x: Tensor, direction: Tensor, order: int) -> tuple[Tensor, ...]:
    """Return dⁱ/dtⁱ f(x + t·direction) at t = 0 for i = 0 … order, each of the shape of f(x), in one pass.

    `f` is any function of torch operations that have a Taylor rule, such as a timm model in eval mode. Rows
    of a batch are independent if they are independent in `f`. The result has no gradient. Raises `UserError`
    for an order beyond 0 … 4, an operation without a rule, and an output that does not depend on the input
    through differentiable operations; `ValueError` for shapes that do not fit.
    """
    if not 0 <= order <= HIGHEST:
        raise UserError(f"order={order}: jets go from order 0 to {HIGHEST}; use one of these")
    _check(x, direction)
    start = Series([x.detach(), direction.detach(), *[None] * (order - 1)][: order + 1])
    with sdpa_kernel(SDPBackend.MATH):
        # functionalize removes operations in place, which would change tensors that a series already uses.
        end = torch.func.functionalize(f)(start)
    if not isinstance(end, Series):
        raise _not_differentiable(f)
    return tuple(
        torch.zeros_like(value(end)) if c is None else c * math.factorial(n)
        for n, c in enumerate(end.coefficients)
    )


def jvp(f: Function, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return f(x) and the product J·v with its Jacobian, by forward mode.

    Raises `UserError` where the output has no derivative, and `ValueError` for shapes that do not fit.
    """
    _check(x, v)
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), forward_ad.dual_level():
            output, tangent = forward_ad.unpack_dual(f(forward_ad.make_dual(x.detach(), v.detach())))
    except NotImplementedError as error:
        raise UserError(
            f"{_name(f)} has no forward derivative: {str(error).splitlines()[0]}; choose another"
        ) from None
    if tangent is None:
        raise _not_differentiable(f)
    return output, tangent


def vjp(f: Function, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Return f(x) and the product uᵀ·J with its Jacobian, of the shape of x, by reverse mode.

    Raises `UserError` where the output has no derivative.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        output = f(x)
        if not output.requires_grad:
            raise _not_differentiable(f)
        (product,) = torch.autograd.grad(output, x, u, allow_unused=True)
    if product is None:
        raise _not_differentiable(f)
    return output.detach(), product


def hvp(f: Function, x: Tensor, v: Tensor) -> Tensor:
    """Return ∇²f(x)·v, of the shape of x, for a function with one value: forward over reverse mode.

    Every operation of `f` needs a forward mode; `eval_suite.layers.hessian` needs none, as it differentiates
    twice in reverse mode. Raises `UserError` where the function has no derivative, and `ValueError` if it has
    more than one value.
    """
    _check(x, v)
    scalar = _one_value(f)
    with sdpa_kernel(SDPBackend.MATH), torch.enable_grad(), forward_ad.dual_level():
        point = forward_ad.make_dual(x.detach().requires_grad_(), v.detach())
        y = scalar(point)
        if not y.requires_grad:
            raise _not_differentiable(f)
        (gradient,) = torch.autograd.grad(y, point, allow_unused=True)
        if gradient is None:
            raise _not_differentiable(f)
        product = forward_ad.unpack_dual(gradient).tangent
    return torch.zeros_like(x) if product is None else product.detach()


def directional_curvature(f: Function, x: Tensor, v: Tensor) -> Tensor:
    """Return vᵀ∇²f(x)v / ‖v‖² for a function with one value, from one jet of order 2.

    Raises what `jet` raises, and `ValueError` for v = 0 or a function with more than one value.
    """
    if not v.any():
        raise ValueError("directional_curvature: the direction is 0")
    return jet(_one_value(f), x, v, 2)[2] / v.square().sum()


def _one_value(f: Function) -> Function:
    """Return `f` with a check that it has one value."""

    def checked(x: Tensor) -> Tensor:
        y = f(x)
        if y.numel() != 1:
            raise ValueError(f"expected a function with one value, got {tuple(y.shape)}")
        return y.reshape(())

    return checked


def _check(x: Tensor, direction: Tensor) -> None:
    """Raise `ValueError` unless `x` is floating-point and `direction` has its shape."""
    if x.shape != direction.shape or not x.is_floating_point():
        raise ValueError(
            f"expected a floating-point x and a direction of its shape, got {tuple(x.shape)} {x.dtype} and "
            f"{tuple(direction.shape)}"
        )


def _not_differentiable(f: Function) -> UserError:
    return UserError(
        f"{_name(f)} is not differentiable: its output does not depend on its input but through constants, "
        "such as argmax, rounding or detach; choose another function or block"
    )


def _name(f: Function) -> str:
    return getattr(f, "__name__", type(f).__name__)
