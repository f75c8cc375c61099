"""Compute characteristic sums with Triton kernels for CUDA, which read x once forward and once backward.

float32 only. If TRITON_INTERPRET=1 is set before the first import, the kernels run on the CPU; that is how
they are tested where there is no GPU.
"""
# mypy: allow-untyped-defs

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# With 4096 elements in 8 warps a thread has 16 elements: their cos and sin at the first knot and at the
# current one fit into its registers. Tiles are long in samples, so that a row is summed within one warp.
TILE = 4096
LONGEST_TILE = 512
WARPS = 8


def forward(x: Tensor, spacing: float, knots: int) -> Tensor:
    """Return Σ cos and Σ sin at the knots; shapes as in `characteristic_sums.characteristic_sums`."""
    rows, samples = x.shape
    blocks = _blocks(samples)
    tiles = triton.cdiv(samples, blocks["BLOCK_SAMPLES"])
    # Each tile has a partial sum of its own. Atomic additions would make the result depend on their order.
    partial = x.new_empty(tiles, 2, knots - 1, rows)
    if x.numel():
        with torch.cuda.device_of(x):
            _forward_kernel[(triton.cdiv(rows, blocks["BLOCK_ROWS"]), tiles)](
                x, partial, rows, samples, *x.stride(), spacing, POWERS=knots - 1, **blocks
            )
    return partial.sum(0)


def backward(x: Tensor, gradient: Tensor, spacing: float) -> Tensor:
    """Return the gradient of x (R, N) from the gradient of the sums (2, knots - 1, R)."""
    rows, samples = x.shape
    powers = gradient.shape[1]
    t = spacing * torch.arange(1, powers + 1, dtype=x.dtype, device=x.device)[:, None]
    coefficients = (gradient * t).contiguous()
    result = torch.empty_like(x)
    if x.numel():
        blocks = _blocks(samples)
        grid = (triton.cdiv(rows, blocks["BLOCK_ROWS"]), triton.cdiv(samples, blocks["BLOCK_SAMPLES"]))
        with torch.cuda.device_of(x):
            _backward_kernel[grid](
                x, coefficients, result, rows, samples, *x.stride(), *result.stride(), spacing,
                POWERS=powers, **blocks,
            )  # fmt: skip
    return result


def check(x: Tensor) -> None:
    """Raise `ValueError` unless `x` is float32."""
    if x.dtype != torch.float32:
        raise ValueError(f"the Triton path computes in float32, not {x.dtype}; use implementation='angle'")


def _blocks(samples: int) -> dict[str, Any]:
    """Return the shape of a tile for rows of `samples` samples, and how Triton compiles a kernel for it."""
    width = min(LONGEST_TILE, triton.next_power_of_2(max(1, samples)))
    # A product and a sum are one instruction; newer versions of Triton do so only if they are asked to.
    options = {"num_warps": WARPS, "enable_fp_fusion": True}
    return {"BLOCK_ROWS": TILE // width, "BLOCK_SAMPLES": width, **options}


@triton.jit
def _cos_sin(x):
    """Return cos and sin, exact within 1e-7 for |x| < 1e5.

    Cody & Waite's reduction with the polynomials of Cephes. tl.cos and tl.sin are not used: each would reduce
    x again, and unrolls a slow branch for huge x. For |x| ≥ 1e5, where SIGReg's grid is aliased a thousand
    times over, the values are bounded and nothing more.
    """
    quadrant = tl.floor(x * 0.6366197723675814 + 0.5)
    r = ((x - quadrant * 1.5703125) - quadrant * 4.837512969970703125e-4) - quadrant * 7.54978995489188216e-8
    r = tl.where(tl.abs(r) > 0.8, r * 0.0, r)
    square = r * r
    s = r + r * square * (-1.6666654611e-1 + square * (8.3321608736e-3 - 1.9515295891e-4 * square))
    c = (
        1.0
        - 0.5 * square
        + square
        * square
        * (4.166664568298827e-2 + square * (-1.388731625493765e-3 + square * 2.443315711809948e-5))
    )
    turn = quadrant.to(tl.int32) & 3
    odd = (turn & 1) == 1
    cos = tl.where(odd, s, c)
    sin = tl.where(odd, c, s)
    return tl.where((turn == 1) | (turn == 2), -cos, cos), tl.where(turn >= 2, -sin, sin)


@triton.jit
def _forward_kernel(
    x_ptr,
    partial_ptr,
    row_count,
    sample_count,
    stride_row,
    stride_sample,
    spacing,
    POWERS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr,
):
    """Write the sums of one tile of x to `partial_ptr` (tiles, 2, POWERS, rows)."""
    row_count = tl.cast(row_count, tl.int64)  # products with it may pass 2³¹
    tile = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    samples = tile * BLOCK_SAMPLES + tl.arange(0, BLOCK_SAMPLES)
    inside = (rows < row_count)[:, None] & (samples < sample_count)[None, :]
    offsets = rows[:, None] * stride_row + samples[None, :] * stride_sample
    phase = spacing * tl.load(x_ptr + offsets, mask=inside, other=0.0)
    # Elements outside x must add nothing: sin is 0 there already, cos has to be set to 0.
    cos1, sin1 = _cos_sin(phase)
    cos1 = tl.where(inside, cos1, 0.0)
    cos = cos1
    sin = sin1
    out = partial_ptr + tile * (2 * POWERS * row_count) + rows
    for k in range(POWERS):
        tl.store(out + k * row_count, tl.sum(cos, axis=1), mask=rows < row_count)
        tl.store(out + (POWERS + k) * row_count, tl.sum(sin, axis=1), mask=rows < row_count)
        next_cos = cos * cos1 - sin * sin1
        sin = sin * cos1 + cos * sin1
        cos = next_cos


@triton.jit
def _backward_kernel(
    x_ptr,
    coefficient_ptr,
    result_ptr,
    row_count,
    sample_count,
    stride_row,
    stride_sample,
    result_stride_row,
    result_stride_sample,
    spacing,
    POWERS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr,
):
    """Write the gradient of one tile of x, by Horner's rule from the last knot to the first."""
    row_count = tl.cast(row_count, tl.int64)
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    samples = tl.program_id(1).to(tl.int64) * BLOCK_SAMPLES + tl.arange(0, BLOCK_SAMPLES)
    inside = (rows < row_count)[:, None] & (samples < sample_count)[None, :]
    offsets = rows[:, None] * stride_row + samples[None, :] * stride_sample
    phase = spacing * tl.load(x_ptr + offsets, mask=inside, other=0.0)
    cos1, sin1 = _cos_sin(phase)
    real = tl.zeros((BLOCK_ROWS, BLOCK_SAMPLES), dtype=tl.float32)
    imaginary = tl.zeros((BLOCK_ROWS, BLOCK_SAMPLES), dtype=tl.float32)
    coefficients = coefficient_ptr + rows
    for i in range(POWERS):
        k = POWERS - 1 - i
        of_cos = tl.load(coefficients + k * row_count, mask=rows < row_count, other=0.0)
        of_sin = tl.load(coefficients + (POWERS + k) * row_count, mask=rows < row_count, other=0.0)
        real = real + of_sin[:, None]
        imaginary = imaginary + of_cos[:, None]
        next_real = real * cos1 - imaginary * sin1
        imaginary = real * sin1 + imaginary * cos1
        real = next_real
    out = rows[:, None] * result_stride_row + samples[None, :] * result_stride_sample
    tl.store(result_ptr + out, real, mask=inside)
