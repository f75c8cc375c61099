"""Blocks of a ViT in which residual, layer scale, drop-path and the next norm are one kernel on GPUs.

These operations do little arithmetic for the memory that they read. Uncompiled, each reads and writes all
tokens; torch.compile makes one kernel of them forward, but three backward. Here it is one each way, in an
operation that compiled and uncompiled blocks call alike.

Only the norm in the middle of a block is fused. The one at its start would need what the block before it
adds last, so that blocks would have to return two tensors, and wrappers of blocks (recomputation, shards) as
well.
"""

import logging
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm, LayerScale
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from pretrain.models.drop_path import KeyedDropPath

log = logging.getLogger(__name__)

# Up to this width, a thread's part of a row and of three sums over rows fits into its registers.
WIDEST = 4096
_TRIED = 300
"""Tokens that the kernels are tried on, more than there are programs."""
_EPSILON = 1e-6
_LARGEST_ERROR = 0.02
"""Largest relative error in the trial. That of bf16 is below 0.01."""


class FusedBlock(Block):
    """timm's block, with the same parameters and names and another `forward`, for GPUs."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        branch = self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal)
        drop_path = self.drop_path1
        scale = drop_path.scale if self.training and isinstance(drop_path, KeyedDropPath) else None
        gamma, norm2 = cast(Tensor, self.ls1.gamma), self.norm2
        # This is the type that torch's operations would return.
        x = x.to(torch.promote_types(torch.promote_types(x.dtype, branch.dtype), gamma.dtype))
        x, y, _ = residual_norm(x, branch, gamma, scale, norm2.weight, norm2.bias, norm2.eps)
        return x + self.drop_path2(self.ls2(self.mlp(y)))


def fuse(encoders: list[nn.Module], device: torch.device) -> bool:
    """Make the blocks of plain ViTs fused ones, in place, and return whether any is.

    Their drop-path has to be keyed. Blocks without layer scale or with another norm stay as they are. So do
    all if a kernel fails on `device` or is wrong there, after one line in the log.
    """
    blocks: list[Any] = [module for encoder in encoders for module in encoder.modules() if _fits(module)]
    try:
        for width in {block.norm2.weight.shape[0] for block in blocks}:
            _try_out(width, device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        log.warning(
            "Triton failed (%s): residuals and norms are not fused, which is slower; if this machine has no "
            "C compiler, install gcc, or set CC",
            str(error).split("\n")[0],
        )
        return False
    for block in blocks:
        # As in `pretrain.models.several_sizes`, the module has to stay, with another `forward`.
        block.__class__ = FusedBlock
    return bool(blocks)


def _fits(block: Any) -> bool:
    """Return whether this is a timm block that `FusedBlock` can compute."""
    norm: Any = getattr(block, "norm2", None)
    return bool(
        type(block) is Block
        and type(block.ls1) is LayerScale
        and isinstance(block.drop_path1, nn.Identity | KeyedDropPath)
        and type(norm) in (LayerNorm, nn.LayerNorm)
        and norm.weight is not None
        and norm.bias is not None
        and norm.weight.shape[0] <= WIDEST
    )


def _try_out(width: int, device: torch.device) -> None:
    """Run both kernels on a few hundred tokens; raises RuntimeError if torch's operations differ."""
    drawn = torch.Generator().manual_seed(0)
    x, branch, to_total, to_norm = torch.randn(4, _TRIED, width, generator=drawn).to(device)
    branch, to_norm = branch.bfloat16(), to_norm.bfloat16()
    gamma, weight, bias = (1 + torch.randn(3, width, generator=drawn) / 4).to(device)
    leaves = [tensor.requires_grad_() for tensor in (x, branch, gamma, weight, bias)]
    found = residual_norm(x, branch, gamma, None, weight, bias, _EPSILON)[:2]
    total = x + gamma * branch.float()
    truth = total, F.layer_norm(total, (width,), weight, bias, _EPSILON)
    gradients = torch.autograd.grad(found, leaves, (to_total, to_norm))
    expected = torch.autograd.grad(truth, leaves, (to_total, to_norm.float()))
    for mine, theirs in zip((*found, *gradients), (*truth, *expected), strict=True):
        error = torch.linalg.vector_norm(mine.float() - theirs.float()) / torch.linalg.vector_norm(theirs)
        if not error < _LARGEST_ERROR:
            raise RuntimeError(f"its result differs from torch's by {100 * error:.1f} %")


@torch.library.custom_op("isotorus::residual_norm", mutates_args=())
def residual_norm(
    x: Tensor,
    branch: Tensor,
    gamma: Tensor,
    scale: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x + gamma · scale · branch, its layer norm, and (mean, 1/deviation) of each token (2, tokens).

    `x` and `branch` are (…, D). `scale` has the shape of the first dimensions of `x`, or is None. The sum has
    the type of `x`, the norm that of `branch`, and statistics are fp32.
    """
    from pretrain.models import residual_norm_triton as kernels

    flat = None if scale is None else scale.flatten()
    total, norm, moments = kernels.forward(_rows(x), _rows(branch), gamma, flat, weight, bias, epsilon)
    return total.view(x.shape), norm.view(x.shape), moments


@residual_norm.register_fake
def _(x, branch, gamma, scale, weight, bias, epsilon):  # type: ignore[no-untyped-def]
    moments = x.new_empty((2, x.numel() // x.shape[-1]), dtype=torch.float32)
    return x.new_empty(x.shape), branch.new_empty(x.shape), moments


@torch.library.custom_op("isotorus::residual_norm_backward", mutates_args=())
def residual_norm_backward(
    total_gradient: Tensor,
    norm_gradient: Tensor,
    total: Tensor,
    moments: Tensor,
    branch: Tensor,
    gamma: Tensor,
    scale: Tensor | None,
    weight: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, of the branch, and of gamma, weight and bias as (3, D) in fp32."""
    from pretrain.models import residual_norm_triton as kernels

    flat = None if scale is None else scale.flatten()
    given = _rows(total_gradient), _rows(norm_gradient)
    x, of_branch, sums = kernels.backward(*given, _rows(total), moments, _rows(branch), gamma, flat, weight)
    return x.view(total.shape), of_branch.view(total.shape), sums


@residual_norm_backward.register_fake
def _(total_gradient, norm_gradient, total, moments, branch, gamma, scale, weight):  # type: ignore[no-untyped-def]
    sums = total.new_empty((3, total.shape[-1]), dtype=torch.float32)
    return total.new_empty(total.shape), branch.new_empty(total.shape), sums


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    _, branch, gamma, scale, weight, bias, _ = inputs
    total, _, moments = output
    ctx.save_for_backward(total, moments, branch, gamma, scale, weight)
    ctx.bias_type = bias.dtype


def _backward(ctx, total_gradient, norm_gradient, _):  # type: ignore[no-untyped-def]
    saved = ctx.saved_tensors  # read once: a second time fails where activations are recomputed
    *_, gamma, _, weight = saved
    x, branch, sums = residual_norm_backward(total_gradient, norm_gradient, *saved)
    of_gamma, of_weight, of_bias = sums.unbind()
    return (
        x, branch, of_gamma.to(gamma.dtype), None, of_weight.to(weight.dtype), of_bias.to(ctx.bias_type), None
    )  # fmt: skip


residual_norm.register_autograd(_backward, setup_context=_save)


def _rows(x: Tensor) -> Tensor:
    """Return (…, D) as (tokens, D), with the channels of a token next to each other in memory."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 else x.contiguous()
