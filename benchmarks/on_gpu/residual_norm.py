"""Residual, layer scale and norm of a ViT-g block: the Triton kernels against torch's operations."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.on_gpu.report import Report, Setting
from benchmarks.on_gpu.runs import difference, seconds, start
from pretrain.models.residual_norm import residual_norm as kernels

EPSILON = 1e-6
# The tokens of 16 images in two views of 224² and six of 98².
TOKENS = 16 * (2 * 257 + 6 * 50)
# Bytes a value that one kernel each way has to move, with an fp32 residual stream and bf16 branches.
FORWARD, BACKWARD = 12, 18

Function = Callable[..., tuple[Tensor, Tensor]]


def residual_norm(setting: Setting, report: Report) -> None:
    """Compare values and gradients with float64, and the time of each way, compiled too."""
    device = start(setting)
    tokens, width = setting.size((6, 32), (TOKENS, 1536))
    generator = torch.Generator(device).manual_seed(0)
    shapes = ((tokens, width), (tokens, width), (width,), (width,), (width,))
    inputs = [torch.randn(shape, device=device, generator=generator) for shape in shapes]
    inputs[1] = inputs[1].bfloat16()
    cotangents = [torch.randn(tokens, width, device=device, generator=generator) for _ in range(2)]
    cotangents[1] = cotangents[1].bfloat16()
    ways: dict[str, Function] = {"eager": _unfused, "compiled": torch.compile(_unfused)}
    if setting.device == "cuda":
        ways["triton"] = _fused
    else:
        report.skip("Triton starts nothing for a CPU; torch's operations were compared alone")
    truth = _run(_unfused, [x.double() for x in inputs], [y.double() for y in cotangents])
    times: dict[str, Any] = {}
    for name, way in ways.items():
        apart = [difference(a, b) for a, b in zip(_run(way, inputs, cotangents), truth, strict=True)]
        report.note(**{f"error of {name}": max(apart)})
        report.check(max(apart) < 2**-7, f"{name}: values and gradients differ from float64 by {apart}")
        for what, work in (("forward", lambda way=way: way(*inputs)),
                           ("both", lambda way=way: _run(way, inputs, cotangents))):  # fmt: skip
            times[f"{name}, {what}"] = 1e3 * seconds(work, device, repeats=setting.size(1, 10))
    report.note(milliseconds=times, gigabytes=tokens * width * (FORWARD + BACKWARD) / 1e9)


def _fused(*inputs: Tensor) -> tuple[Tensor, Tensor]:
    x, branch, gamma, weight, bias = inputs
    total, norm, _ = kernels(x, branch, gamma, None, weight, bias, EPSILON)
    return total, norm


def _unfused(*inputs: Tensor) -> tuple[Tensor, Tensor]:
    x, branch, gamma, weight, bias = inputs
    total = x + branch * gamma
    return total, F.layer_norm(total, x.shape[-1:], weight, bias, EPSILON).to(branch.dtype)


def _run(way: Function, inputs: list[Tensor], cotangents: list[Tensor]) -> list[Tensor]:
    """Return sum, norm and the gradients of all inputs."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    outputs = way(*leaves)
    return [*outputs, *torch.autograd.grad(outputs, leaves, cotangents)]
