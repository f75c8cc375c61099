"""Σ_n e^{i t_k x_n} over samples, and the ways of computing it.

Everything that SIGReg needs of the data is this sum at the knots t_k = k · spacing, so that nothing of
the size samples × slices × knots need exist: the powers of e^{i·spacing·x} follow one from the other,
and the gradient is a polynomial in the same quantity. Each path is a module with

    forward(x: (R, N), spacing, knots) -> (2, knots - 1, R)           Σ cos and Σ sin, for k = 1 … knots - 1
    backward(x, gradient: (2, knots - 1, R), spacing) -> (R, N)

for R rows of N samples each. Samples come last because the CPU is fastest along contiguous samples. The
knot t = 0 is left out: every characteristic function is 1 there.
"""

import importlib.util
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pretrain.objectives import sigreg_angle, sigreg_compiled

Implementation = Literal["auto", "eager", "angle", "compiled", "triton"]

# Compiling takes from 20 s to over a minute and then saves some 20 ns an element and step over the angle
# path on two cores, so that it pays within a few thousand steps at this size and hardly ever below it.
COMPILE_ELEMENTS = 2**20


def characteristic_sums(
    x: Tensor, spacing: float, knots: int, implementation: Implementation = "auto"
) -> Tensor:
    """Sums over the samples of cos and sin of t·x, at t = spacing · (1 … knots - 1).

    `x` is (R rows, N samples), float32 or float64. Returns (2, knots - 1, R). `eager` is the readable
    reference and holds R·N·knots numbers; the other paths do not: `angle` (torch operations, in
    cache-sized tiles), `compiled` (torch.compile, for CPU), `triton` (CUDA, float32). `auto` chooses by
    device and size.
    """
    if implementation == "eager":
        return reference(x, spacing, knots)
    return _CharacteristicSums.apply(x, spacing, knots, _path(x, implementation))


def reference(x: Tensor, spacing: float, knots: int) -> Tensor:
    """The sums as they are usually written, differentiated by autograd; the truth for the other paths."""
    t = spacing * torch.arange(1, knots, dtype=x.dtype, device=x.device)
    phase = t[:, None, None] * x
    return torch.stack([phase.cos().sum(-1), phase.sin().sum(-1)])


def _path(x: Tensor, implementation: Implementation) -> ModuleType:
    if implementation == "auto":
        if x.is_cuda and x.dtype == torch.float32 and importlib.util.find_spec("triton"):
            implementation = "triton"
        elif x.device.type == "cpu" and x.numel() >= COMPILE_ELEMENTS and sigreg_compiled.available():
            implementation = "compiled"
        else:
            implementation = "angle"
    if implementation == "triton":
        # Triton comes with CUDA builds of torch only, so it is imported where it is used.
        from pretrain.objectives import sigreg_triton

        return sigreg_triton
    return {"angle": sigreg_angle, "compiled": sigreg_compiled}[implementation]


class _CharacteristicSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, spacing: float, knots: int, path: ModuleType) -> Tensor:
        ctx.save_for_backward(x)
        ctx.spacing, ctx.path = spacing, path
        return path.forward(x, spacing, knots)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        return ctx.path.backward(x, gradients[0], ctx.spacing), None, None, None
