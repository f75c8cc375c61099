"""Characteristic sums by torch.compile on CPU: one pass over x forward and one back.

Where there is no working C++ compiler the angle path takes over, with one line in the log.
"""

import functools
import logging
import os
import shutil
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pretrain.objectives import sigreg_angle

log = logging.getLogger(__name__)

# Set when a compiler that is there turns out not to work.
_broken = False


def forward(x: Tensor, spacing: float, knots: int) -> Tensor:
    """Σ cos and Σ sin at the knots; shapes as in `sigreg_sums`."""
    return _run(_sums, sigreg_angle.forward, x, spacing, knots)


def backward(x: Tensor, gradient: Tensor, spacing: float) -> Tensor:
    """The gradient of the sums, contracted with `gradient`."""
    return _run(_gradient, sigreg_angle.backward, x, gradient, spacing)


@functools.cache
def available() -> bool:
    """Whether the compiler that torch.compile would call is on the path; says so once if not."""
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler.split()[0]):
        return True
    log.info("no C++ compiler (%s): SIGReg runs uncompiled", compiler)
    return False


def _sums(x: Tensor, spacing: float, knots: int) -> Tensor:
    cos1, sin1 = torch.cos(spacing * x), torch.sin(spacing * x)
    cos, sin = cos1, sin1
    sums = []
    for _ in range(1, knots):
        sums += [cos.sum(1), sin.sum(1)]
        cos, sin = cos * cos1 - sin * sin1, sin * cos1 + cos * sin1
    return torch.stack(sums).unflatten(0, (-1, 2)).transpose(0, 1)


def _gradient(x: Tensor, gradient: Tensor, spacing: float) -> Tensor:
    cos1, sin1 = torch.cos(spacing * x), torch.sin(spacing * x)
    real, imaginary = torch.zeros_like(x), torch.zeros_like(x)
    for k in range(gradient.shape[1], 0, -1):
        real = real + (k * spacing) * gradient[1, k - 1, :, None]
        imaginary = imaginary + (k * spacing) * gradient[0, k - 1, :, None]
        real, imaginary = real * cos1 - imaginary * sin1, real * sin1 + imaginary * cos1
    return real


def _run(function: Callable[..., Tensor], fallback: Callable[..., Tensor], x: Tensor, *rest: Any) -> Tensor:
    global _broken
    if not _broken and available() and x.numel():
        try:
            return _compiled(function)(x, *rest)
        except Exception as error:
            # A compiler without headers, or without space for its output, shows only here; an error of
            # the input is raised again by the fallback.
            _broken = True
            log.info("torch.compile failed (%s): SIGReg runs uncompiled", str(error).split("\n")[0])
    return fallback(x, *rest)


@functools.cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function)
