"""Characteristic sums as Triton kernels for CUDA: x is read once forward, and once more backward.

float32 only. With TRITON_INTERPRET=1 set before the first import they run on CPU, which is how they are
tested where there is no GPU.
"""
# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

# A tile of 128 × 32 in 4 warps leaves 32 elements a thread: cos and sin at the first knot and at the
# current one then fit the registers, and a row of 32 floats is one full memory transaction.
BLOCK_ROWS = 128
BLOCK_COLUMNS = 32
WARPS = 4


def forward(x: Tensor, spacing: float, knots: int) -> Tensor:
    """Σ cos and Σ sin at the knots; shapes as in `sigreg_sums`."""
    _check(x)
    views, samples, slices = x.shape
    tiles = triton.cdiv(samples, BLOCK_ROWS)
    # One partial sum a tile instead of atomic additions: the result does not depend on their order.
    partial = x.new_empty(views, tiles, 2, knots - 1, slices)
    if x.numel():
        with torch.cuda.device_of(x):
            _forward_kernel[(triton.cdiv(slices, BLOCK_COLUMNS), tiles, views)](
                x,
                partial,
                samples,
                slices,
                *x.stride(),
                spacing,
                POWERS=knots - 1,
                BLOCK_ROWS=BLOCK_ROWS,
                BLOCK_COLUMNS=BLOCK_COLUMNS,
                num_warps=WARPS,
            )
    return partial.sum(1)


def backward(x: Tensor, gradient: Tensor, spacing: float) -> Tensor:
    """The gradient of the sums, contracted with `gradient`."""
    _check(x)
    views, samples, slices = x.shape
    powers = gradient.shape[2]
    t = spacing * torch.arange(1, powers + 1, dtype=x.dtype, device=x.device)[:, None]
    coefficients = (gradient * t).contiguous()
    result = torch.empty_like(x, memory_format=torch.contiguous_format)
    if x.numel():
        with torch.cuda.device_of(x):
            _backward_kernel[(triton.cdiv(slices, BLOCK_COLUMNS), triton.cdiv(samples, BLOCK_ROWS), views)](
                x,
                coefficients,
                result,
                samples,
                slices,
                *x.stride(),
                spacing,
                POWERS=powers,
                BLOCK_ROWS=BLOCK_ROWS,
                BLOCK_COLUMNS=BLOCK_COLUMNS,
                num_warps=WARPS,
            )
    return result


def _check(x: Tensor) -> None:
    if x.dtype != torch.float32:
        raise ValueError(f"the Triton path computes in float32, not {x.dtype}; use implementation='angle'")


@triton.jit
def _forward_kernel(
    x_ptr,
    partial_ptr,
    samples,
    slices,
    stride_view,
    stride_sample,
    stride_slice,
    spacing,
    POWERS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    tile = tl.program_id(1)
    view = tl.program_id(2).to(tl.int64)
    rows = (tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
    columns = (tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)).to(tl.int64)
    inside = (rows < samples)[:, None] & (columns < slices)[None, :]
    offsets = view * stride_view + rows[:, None] * stride_sample + columns[None, :] * stride_slice
    phase = spacing * tl.load(x_ptr + offsets, mask=inside, other=0.0)
    # Outside the sample cos is set to 0; sin is 0 there already, and so are all their powers.
    cos1 = tl.where(inside, tl.cos(phase), 0.0)
    sin1 = tl.sin(phase)
    cos = cos1
    sin = sin1
    out = partial_ptr + (view * tl.num_programs(1) + tile) * (2 * POWERS * slices) + columns
    for k in tl.static_range(POWERS):
        tl.store(out + k * slices, tl.sum(cos, axis=0), mask=columns < slices)
        tl.store(out + (POWERS + k) * slices, tl.sum(sin, axis=0), mask=columns < slices)
        next_cos = cos * cos1 - sin * sin1
        sin = sin * cos1 + cos * sin1
        cos = next_cos


@triton.jit
def _backward_kernel(
    x_ptr,
    coefficient_ptr,
    result_ptr,
    samples,
    slices,
    stride_view,
    stride_sample,
    stride_slice,
    spacing,
    POWERS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    view = tl.program_id(2).to(tl.int64)
    rows = (tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
    columns = (tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)).to(tl.int64)
    inside = (rows < samples)[:, None] & (columns < slices)[None, :]
    offsets = view * stride_view + rows[:, None] * stride_sample + columns[None, :] * stride_slice
    phase = spacing * tl.load(x_ptr + offsets, mask=inside, other=0.0)
    cos1 = tl.cos(phase)
    sin1 = tl.sin(phase)
    real = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
    imaginary = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
    coefficients = coefficient_ptr + view * (2 * POWERS * slices) + columns
    for i in tl.static_range(POWERS):
        k = POWERS - 1 - i
        of_cos = tl.load(coefficients + k * slices, mask=columns < slices, other=0.0)
        of_sin = tl.load(coefficients + (POWERS + k) * slices, mask=columns < slices, other=0.0)
        real = real + of_sin[None, :]
        imaginary = imaginary + of_cos[None, :]
        next_real = real * cos1 - imaginary * sin1
        imaginary = real * sin1 + imaginary * cos1
        real = next_real
    out = result_ptr + (view * samples + rows[:, None]) * slices + columns[None, :]
    tl.store(out, real, mask=inside)
