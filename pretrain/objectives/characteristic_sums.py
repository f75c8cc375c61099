"""Compute the sums Σ_n e^{i t_k x_n} over samples, at evenly spaced knots t_k = k · spacing.

SIGReg needs nothing else of the data. The usual form holds an array of samples × slices × knots. Here each
power of e^{i·spacing·x} is made from the one before, and the gradient, a polynomial in e^{i·spacing·x}, is
computed by Horner's rule, so that nothing larger than x is held.

This replaces the usual form, which stable-pretraining has in plain torch: forward and backward take 1/22 of
its time on two CPU threads and 1/33 of its memory (`python benchmarks/sigreg.py --device cpu`, in
benchmarks/RESULTS.md).

The implementations:

- `eager`: the usual form, differentiated by autograd; the reference for the others.
- `angle`: plain torch, in tiles that stay in the cache.
- `compiled`: torch.compile on CPUs, one pass over x forward and one backward.
- `triton`: kernels for CUDA, in `characteristic_sums_triton`.
- `auto`: one of the last three, by device and size.
- `shapes`: allocates the same tensors as the kernels and computes nothing, for estimates of memory.
"""

import functools
import importlib.util
import logging
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from isotorus.compilers import COMPILER_REMEDY, cxx_compiler

log = logging.getLogger(__name__)

Implementation = Literal["auto", "eager", "angle", "compiled", "triton", "shapes"]

# Compiling takes 20 s to over a minute. On two cores it then saves about 20 ns an element and step against
# `angle`. At this size that pays within a few thousand steps, below it hardly ever.
COMPILE_ELEMENTS = 2**20
# Elements of x in a tile of `angle`. On a CPU a tile stays in the cache, and below the 32768 elements from
# which torch splits an operation over threads: in thousands of short operations, threads wait longer for each
# other than they save. On an accelerator the tile only bounds memory.
CPU_TILE = 2**14
DEVICE_TILE = 2**24

# True after compiling has failed although a C++ compiler is installed.
_compiler_broken = False
# True after Triton has failed to build or to start a kernel.
_triton_broken = False


def characteristic_sums(
    x: Tensor, spacing: float, knots: int, implementation: Implementation = "auto"
) -> Tensor:
    """Return the sums over n of cos(t_k x_n) and of sin(t_k x_n) for k = 1 … knots - 1, as (2, knots - 1, R).

    `x` is (R rows, N samples), float32 or float64. Samples come last because a CPU is fastest along
    contiguous samples. The knot t = 0 is left out, as every characteristic function is 1 there. `eager` holds
    R·N·knots numbers, the other implementations R·N. `triton` raises `ValueError` for float64.
    """
    if implementation == "eager":
        return reference(x, spacing, knots)
    return _CharacteristicSums.apply(x, spacing, knots, _choose(x, implementation))


def reference(x: Tensor, spacing: float, knots: int) -> Tensor:
    """Return the sums in their usual form, differentiated by autograd; tests compare the others with it."""
    t = spacing * torch.arange(1, knots, dtype=x.dtype, device=x.device)
    phase = t[:, None, None] * x
    return torch.stack([phase.cos().sum(-1), phase.sin().sum(-1)])


class _Path(NamedTuple):
    """One way to compute the sums and their gradient."""

    forward: Callable[[Tensor, float, int], Tensor]
    """(x (R, N), spacing, knots) to the sums (2, knots - 1, R)."""
    backward: Callable[[Tensor, Tensor, float], Tensor]
    """(x (R, N), gradient of the sums (2, knots - 1, R), spacing) to the gradient of x (R, N)."""


def _choose(x: Tensor, implementation: Implementation) -> _Path:
    """Return the functions of an implementation; for `auto`, by device, precision and size of `x`."""
    if implementation == "auto":
        if x.is_cuda and x.dtype == torch.float32 and importlib.util.find_spec("triton"):
            implementation = "triton"
        elif x.device.type == "cpu" and x.numel() >= COMPILE_ELEMENTS and compiler_available():
            implementation = "compiled"
        else:
            implementation = "angle"
    if implementation == "triton":
        # Triton comes with CUDA builds of torch only.
        from pretrain.objectives import characteristic_sums_triton as kernels

        kernels.check(x)
        launched = functools.partial(_run_triton, kernels.forward, _angle_forward)
        return _Path(launched, functools.partial(_run_triton, kernels.backward, _angle_backward))
    if implementation == "compiled":
        compiled = functools.partial(_run_compiled, _sums, _angle_forward)
        return _Path(compiled, functools.partial(_run_compiled, _gradient, _angle_backward))
    if implementation == "shapes":
        return _Path(lambda x, _, knots: x.new_empty(2, knots - 1, len(x)), lambda x, *_: torch.empty_like(x))
    return _Path(_angle_forward, _angle_backward)


class _CharacteristicSums(torch.autograd.Function):
    """The sums as one operation for autograd, which saves x alone.

    Where the gradient itself is to be differentiated, it is computed in plain torch, which every
    implementation shares and which holds knots times as many numbers.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, spacing: float, knots: int, path: _Path) -> Tensor:
        ctx.save_for_backward(x)
        ctx.spacing, ctx.path = spacing, path
        return path.forward(x, spacing, knots)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        # Autograd enables gradients here only for create_graph=True.
        backward = _gradient if torch.is_grad_enabled() else ctx.path.backward
        return backward(x, gradients[0], ctx.spacing), None, None, None


def _angle_forward(x: Tensor, spacing: float, knots: int) -> Tensor:
    """Compute the sums in plain torch, tile by tile; arguments and result are those of `_Path.forward`."""
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


def _angle_backward(x: Tensor, gradient: Tensor, spacing: float) -> Tensor:
    """Return Re Σ_k t_k (g_sin + i·g_cos) e^{i t_k x} at each element of x, by Horner's rule."""
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
    """Return e^{i·spacing·x}, complex."""
    return torch.polar(torch.ones_like(x), spacing * x)


def _tiles(x: Tensor) -> Iterator[slice]:
    """Yield slices of rows, each of about one tile of elements."""
    tile = CPU_TILE if x.device.type == "cpu" else DEVICE_TILE
    rows = max(1, tile // max(1, x.shape[1]))
    for start in range(0, len(x), rows):
        yield slice(start, start + rows)


@functools.cache
def compiler_available() -> bool:
    """Return whether the C++ compiler that torch.compile calls is on the path; log one line if it is not."""
    if cxx_compiler():
        return True
    log.info("no C++ compiler: SIGReg runs uncompiled; %s", COMPILER_REMEDY)
    return False


def _run_triton(
    kernel: Callable[..., Tensor], fallback: Callable[..., Tensor], x: Tensor, *arguments: Any
) -> Tensor:
    """Run a Triton kernel, or `fallback` where Triton does not work.

    Triton calls a C compiler when it starts its first kernel on a machine. Memory that runs out is no fault
    of Triton, and is raised.
    """
    global _triton_broken
    if not _triton_broken:
        try:
            return kernel(x, *arguments)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            _triton_broken = True
            log.warning(
                "Triton failed (%s): SIGReg runs uncompiled, which is slower; if this machine has no C "
                "compiler, install gcc, or set CC",
                str(error).split("\n")[0],
            )
    return fallback(x, *arguments)


def _sums(x: Tensor, spacing: float, knots: int) -> Tensor:
    """Compute the sums by the addition theorems of cos and sin, which torch.compile fuses into one loop."""
    cos1, sin1 = torch.cos(spacing * x), torch.sin(spacing * x)
    cos, sin = cos1, sin1
    sums = []
    for _ in range(1, knots):
        sums += [cos.sum(1), sin.sum(1)]
        cos, sin = cos * cos1 - sin * sin1, sin * cos1 + cos * sin1
    return torch.stack(sums).unflatten(0, (-1, 2)).transpose(0, 1)


def _gradient(x: Tensor, gradient: Tensor, spacing: float) -> Tensor:
    """Compute the gradient of x by Horner's rule, in a form that autograd and torch.compile understand."""
    cos1, sin1 = torch.cos(spacing * x), torch.sin(spacing * x)
    real, imaginary = torch.zeros_like(x), torch.zeros_like(x)
    for k in range(gradient.shape[1], 0, -1):
        real = real + (k * spacing) * gradient[1, k - 1, :, None]
        imaginary = imaginary + (k * spacing) * gradient[0, k - 1, :, None]
        real, imaginary = real * cos1 - imaginary * sin1, real * sin1 + imaginary * cos1
    return real


def _run_compiled(
    function: Callable[..., Tensor], fallback: Callable[..., Tensor], x: Tensor, *arguments: Any
) -> Tensor:
    """Run `function` compiled, or `fallback` where there is no working compiler or x is empty."""
    global _compiler_broken
    if not _compiler_broken and compiler_available() and x.numel():
        try:
            return _compile(function)(x, *arguments)
        except Exception as error:
            # A compiler without headers, or without disk space for its output, fails only here. An error that
            # the input causes is raised again by the fallback.
            _compiler_broken = True
            log.info("torch.compile failed (%s): SIGReg runs uncompiled", str(error).split("\n")[0])
    return fallback(x, *arguments)


@functools.cache
def _compile(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function)
