"""Add a branch to the residual stream and normalise the sum, in one Triton kernel forward and one backward.

All arithmetic is in fp32, whatever the tensors hold. Both kernels read a row of channels once, so that at
bf16 branches and an fp32 residual stream the forward pass moves 12 bytes a value, and the backward pass 18.

If TRITON_INTERPRET=1 is set before the first import, the kernels run on the CPU; that is how they are tested
where there is no GPU.
"""
# mypy: allow-untyped-defs

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Each program of the backward pass sums the gradients of layer scale, weight and bias over its rows. Two
# programs fit onto each multiprocessor of an H100; more of them would write more partial sums.
PROGRAMS = 256


def forward(
    x: Tensor,
    branch: Tensor,
    gamma: Tensor,
    scale: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sum (R, D), its norm (R, D) and the mean and 1/deviation of each row (2, R).

    `x` and `branch` are (R, D), with the channels of a row next to each other in memory. `scale`, from
    drop-path, has one number for every R / len(scale) rows. The sum has the type of `x`, the norm that of
    `branch`.
    """
    rows, width = x.shape
    total = torch.empty_like(x, memory_format=torch.contiguous_format)
    norm = torch.empty_like(branch, memory_format=torch.contiguous_format)
    moments = torch.empty(2, rows, dtype=torch.float32, device=x.device)
    if rows:
        with torch.cuda.device_of(x):
            _forward_kernel[(rows,)](
                x, branch, gamma, scale, weight, bias, total, norm, moments,
                rows, _rows_of_each(scale, rows), x.stride(0), branch.stride(0), epsilon,
                WIDTH=width, **_blocks(width),
            )  # fmt: skip
    return total, norm, moments


def backward(
    total_gradient: Tensor,
    norm_gradient: Tensor,
    total: Tensor,
    moments: Tensor,
    branch: Tensor,
    gamma: Tensor,
    scale: Tensor | None,
    weight: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x (R, D), of the branch (R, D), and of gamma, weight and bias, as (3, D) fp32.

    The two given gradients are (R, D), laid out like `x`; the rest is as in `forward`.
    """
    rows, width = total.shape
    x_gradient = torch.empty_like(total)
    branch_gradient = torch.empty_like(branch, memory_format=torch.contiguous_format)
    programs = min(rows, PROGRAMS)
    # Atomic additions to one sum would make the result depend on their order.
    partial = torch.empty(programs, 3, width, dtype=torch.float32, device=total.device)
    if rows:
        with torch.cuda.device_of(total):
            _backward_kernel[(programs,)](
                total_gradient, norm_gradient, total, moments, branch, gamma, scale, weight,
                x_gradient, branch_gradient, partial,
                rows, _rows_of_each(scale, rows),
                total_gradient.stride(0), norm_gradient.stride(0), branch.stride(0),
                WIDTH=width, **_blocks(width),
            )  # fmt: skip
    return x_gradient, branch_gradient, partial.sum(0)


def _rows_of_each(scale: Tensor | None, rows: int) -> int:
    """Return how many rows share a number of `scale`."""
    return 1 if scale is None else rows // len(scale)


def _blocks(width: int) -> dict[str, Any]:
    """Return the length of a block that holds a row, and how Triton compiles a kernel for it."""
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": min(16, max(1, block // 256)), "enable_fp_fusion": True}


@triton.jit
def _forward_kernel(
    x_ptr,
    branch_ptr,
    gamma_ptr,
    scale_ptr,
    weight_ptr,
    bias_ptr,
    total_ptr,
    norm_ptr,
    moments_ptr,
    row_count,
    rows_of_each,
    x_stride,
    branch_stride,
    epsilon,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute one row."""
    row = tl.program_id(0).to(tl.int64)  # products with it may pass 2³¹
    channels = tl.arange(0, BLOCK)
    inside = channels < WIDTH
    branch = tl.load(branch_ptr + row * branch_stride + channels, mask=inside, other=0.0).to(tl.float32)
    branch *= tl.load(gamma_ptr + channels, mask=inside, other=0.0).to(tl.float32)
    if scale_ptr is not None:
        branch *= tl.load(scale_ptr + row // rows_of_each).to(tl.float32)
    x = tl.load(x_ptr + row * x_stride + channels, mask=inside, other=0.0).to(tl.float32)
    rounded = (x + branch).to(total_ptr.dtype.element_ty)
    tl.store(total_ptr + row * WIDTH + channels, rounded, mask=inside)
    total = rounded.to(tl.float32)
    mean = tl.sum(total, axis=0) / WIDTH
    centred = tl.where(inside, total - mean, 0.0)
    rate = 1 / tl.sqrt(tl.sum(centred * centred, axis=0) / WIDTH + epsilon)
    tl.store(moments_ptr + row, mean)
    tl.store(moments_ptr + row_count + row, rate)
    weight = tl.load(weight_ptr + channels, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + channels, mask=inside, other=0.0).to(tl.float32)
    norm = centred * rate * weight + bias
    tl.store(norm_ptr + row * WIDTH + channels, norm.to(norm_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _backward_kernel(
    total_gradient_ptr,
    norm_gradient_ptr,
    total_ptr,
    moments_ptr,
    branch_ptr,
    gamma_ptr,
    scale_ptr,
    weight_ptr,
    x_gradient_ptr,
    branch_gradient_ptr,
    partial_ptr,
    row_count,
    rows_of_each,
    total_gradient_stride,
    norm_gradient_stride,
    branch_stride,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute every n-th row, n being the number of programs, and write sums over them to `partial_ptr`."""
    program = tl.program_id(0).to(tl.int64)
    channels = tl.arange(0, BLOCK)
    inside = channels < WIDTH
    gamma = tl.load(gamma_ptr + channels, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + channels, mask=inside, other=0.0).to(tl.float32)
    of_gamma = tl.zeros((BLOCK,), dtype=tl.float32)
    of_weight = tl.zeros((BLOCK,), dtype=tl.float32)
    of_bias = tl.zeros((BLOCK,), dtype=tl.float32)
    for row in range(program, row_count, tl.num_programs(0)):
        mean = tl.load(moments_ptr + row)
        rate = tl.load(moments_ptr + row_count + row)
        total = tl.load(total_ptr + row * WIDTH + channels, mask=inside, other=0.0).to(tl.float32)
        given = norm_gradient_ptr + row * norm_gradient_stride + channels
        given = tl.load(given, mask=inside, other=0.0).to(tl.float32)
        standard = tl.where(inside, (total - mean) * rate, 0.0)
        of_weight += given * standard
        of_bias += given
        # The norm's gradient has no part along a constant or along the standardised row.
        given *= weight
        constant = tl.sum(given, axis=0) / WIDTH
        along = tl.sum(given * standard, axis=0) / WIDTH
        gradient = total_gradient_ptr + row * total_gradient_stride + channels
        gradient = tl.load(gradient, mask=inside, other=0.0).to(tl.float32)
        gradient += rate * (given - constant - standard * along)
        out = row * WIDTH + channels
        tl.store(x_gradient_ptr + out, gradient.to(x_gradient_ptr.dtype.element_ty), mask=inside)
        if scale_ptr is not None:
            gradient *= tl.load(scale_ptr + row // rows_of_each).to(tl.float32)
        branch = tl.load(branch_ptr + row * branch_stride + channels, mask=inside, other=0.0).to(tl.float32)
        of_gamma += gradient * branch
        gradient *= gamma
        tl.store(branch_gradient_ptr + out, gradient.to(branch_gradient_ptr.dtype.element_ty), mask=inside)
    partial = partial_ptr + program * 3 * WIDTH + channels
    tl.store(partial, of_gamma, mask=inside)
    tl.store(partial + WIDTH, of_weight, mask=inside)
    tl.store(partial + 2 * WIDTH, of_bias, mask=inside)
