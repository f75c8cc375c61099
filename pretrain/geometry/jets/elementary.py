"""Taylor coefficients f⁽ⁿ⁾(x)/n!, n = 0 … order ≤ 4, of elementary functions f at every element of x.

Every function takes x (any shape) and returns order + 1 tensors of its shape.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def exp(x: Tensor, order: int) -> list[Tensor]:
    y = torch.exp(x)
    return [y / math.factorial(n) for n in range(order + 1)]


def expm1(x: Tensor, order: int) -> list[Tensor]:
    return [torch.expm1(x), *exp(x, order)[1:]]


def log(x: Tensor, order: int) -> list[Tensor]:
    return [torch.log(x), *((-1) ** (n + 1) / (n * x**n) for n in range(1, order + 1))]


def log1p(x: Tensor, order: int) -> list[Tensor]:
    return [torch.log1p(x), *log(1 + x, order)[1:]]


def sin(x: Tensor, order: int) -> list[Tensor]:
    cycle = [torch.sin(x), torch.cos(x), -torch.sin(x), -torch.cos(x)]
    return [cycle[n % 4] / math.factorial(n) for n in range(order + 1)]


def cos(x: Tensor, order: int) -> list[Tensor]:
    cycle = [torch.cos(x), -torch.sin(x), -torch.cos(x), torch.sin(x)]
    return [cycle[n % 4] / math.factorial(n) for n in range(order + 1)]


def sinh(x: Tensor, order: int) -> list[Tensor]:
    cycle = [torch.sinh(x), torch.cosh(x)]
    return [cycle[n % 2] / math.factorial(n) for n in range(order + 1)]


def cosh(x: Tensor, order: int) -> list[Tensor]:
    cycle = [torch.cosh(x), torch.sinh(x)]
    return [cycle[n % 2] / math.factorial(n) for n in range(order + 1)]


def tanh(x: Tensor, order: int) -> list[Tensor]:
    """Return the coefficients of tanh, by solving y' = 1 − y²."""
    return _solve(torch.tanh(x), order, lambda y, n: float(n == 0) - _square(y, n))


def sigmoid(x: Tensor, order: int) -> list[Tensor]:
    """Return the coefficients of the sigmoid function, by solving y' = y − y²."""
    return _solve(torch.sigmoid(x), order, lambda y, n: y[n] - _square(y, n))


def tan(x: Tensor, order: int) -> list[Tensor]:
    """Return the coefficients of tan, by solving y' = 1 + y²."""
    return _solve(torch.tan(x), order, lambda y, n: float(n == 0) + _square(y, n))


def atan(x: Tensor, order: int) -> list[Tensor]:
    """Return atan⁽ⁿ⁾(x)/n! = cosⁿy·sin(n(y + π/2))/n at y = atan x."""
    y = torch.atan(x)
    return [y, *(torch.cos(y) ** n * torch.sin(n * (y + math.pi / 2)) / n for n in range(1, order + 1))]


def erf(x: Tensor, order: int) -> list[Tensor]:
    """Return erf⁽ⁿ⁾/n! from the closed form of erf⁽ⁿ⁾.

    erf⁽ⁿ⁾ = (2/√π)·(−1)ⁿ⁻¹·H_{n−1}(x)·e^{−x²} with the physicists' Hermite polynomials H.
    """
    bell = 2 / math.sqrt(math.pi) * torch.exp(-x * x)
    terms = [torch.erf(x), bell, -x * bell, (2 * x * x - 1) * bell / 3, (3 - 2 * x * x) * x * bell / 6]
    return terms[: order + 1]


def power(x: Tensor, order: int, exponent: float) -> list[Tensor]:
    """Return the binomial series of x^exponent.

    For a whole exponent it ends, so that nothing is divided by zero.
    """
    terms, factor = [], 1.0
    for n in range(order + 1):
        terms.append(factor * x ** (exponent - n) if factor else torch.zeros_like(x))
        factor *= (exponent - n) / (n + 1)
    return terms


def sqrt(x: Tensor, order: int) -> list[Tensor]:
    return power(x, order, 0.5)


def rsqrt(x: Tensor, order: int) -> list[Tensor]:
    return [torch.rsqrt(x), *power(x, order, -0.5)[1:]]


def reciprocal(x: Tensor, order: int) -> list[Tensor]:
    return power(x, order, -1)


def _solve(start: Tensor, order: int, slope: Callable[[list[Tensor], int], Tensor]) -> list[Tensor]:
    """Solve y' = g(y): `slope` returns the n-th coefficient of g(y) from the coefficients of y up to n."""
    y = [start]
    for n in range(order):
        y.append(slope(y, n) / (n + 1))
    return y


def _square(y: list[Tensor], n: int) -> Tensor:
    """Return the n-th coefficient of y²."""
    terms = [y[i] * y[n - i] for i in range(n + 1)]
    return sum(terms[1:], terms[0])


ELEMENTARY: dict[Any, Callable[..., list[Tensor]]] = {
    aten.exp: exp,
    aten.expm1: expm1,
    aten.log: log,
    aten.log1p: log1p,
    aten.sin: sin,
    aten.cos: cos,
    aten.tan: tan,
    aten.sinh: sinh,
    aten.cosh: cosh,
    aten.tanh: tanh,
    aten.sigmoid: sigmoid,
    aten.atan: atan,
    aten.erf: erf,
    aten.sqrt: sqrt,
    aten.rsqrt: rsqrt,
    aten.reciprocal: reciprocal,
}
