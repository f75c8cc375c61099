"""A plain ViT that takes images of several sizes at once, with all their tokens in one sequence (1, T, D).

Norms and linear layers then work on one large matrix, and sharded parameters are gathered once instead of
once for each size. Attention stays within each image (sequence packing, Krell et al. 2021, arXiv:2107.02027).
"""

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn


class Layout(NamedTuple):
    """Where each image lies in a sequence of tokens."""

    sizes: tuple[tuple[int, int], ...]
    """(images, tokens in each image) for each size, in order."""
    offsets: Tensor
    """Index at which each image begins, and the index behind the last one, int32."""


def unfit(encoder: nn.Module) -> str | None:
    """Return why an encoder cannot be packed, in words, or None if it can."""
    if type(encoder) is not VisionTransformer:
        return f"{type(encoder).__name__} is not a plain ViT"
    for block in encoder.blocks:
        if type(block) not in (Block, ResPostBlock):
            return f"its blocks are {type(block).__name__}"
        if type(block.attn) is not Attention or getattr(block.attn, "gate", None) is not None:
            return "its attention is not the usual one"
    return None


def pack(encoder: nn.Module) -> None:
    """Make an encoder take a list of images (N, C, H, W), one for each size, in place.

    `unfit(encoder)` must be None.
    """
    assert unfit(encoder) is None
    # Engines hook this module and checkpoints use its names, so it has to stay, with another `forward`. timm
    # has no argument for that.
    encoder.__class__ = PackedViT
    for block in cast(nn.Sequential, encoder.blocks):
        block.attn.__class__ = PackedAttention


class PackedViT(VisionTransformer):
    """timm's ViT with the same parameters and names and another `forward`."""

    def tokens(self, height: int, width: int) -> int:
        """Return the number of tokens of an image."""
        rows, columns = self.patch_embed.dynamic_feat_size((height, width))
        return rows * columns + self.num_prefix_tokens

    def forward(self, images: list[Tensor]) -> list[Tensor]:  # type: ignore[override]
        """Return embeddings (N, D) for the images (N, C, H, W) of each size."""
        sizes = tuple((len(x), self.tokens(*x.shape[-2:])) for x in images)
        lengths = torch.cat(
            [torch.full((n,), t, dtype=torch.int32, device=images[0].device) for n, t in sizes]
        )
        layout = Layout(sizes, F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0)))
        tokens = [self.norm_pre(self._pos_embed(self.patch_embed(x))).flatten(0, 1) for x in images]
        x = torch.cat(tokens)[None]
        for block in self.blocks:
            # timm's blocks pass this argument on to their attention unchanged.
            x = block(x, attn_mask=layout)
        return [self.forward_head(group) for group in unpack(self.norm(x)[0], layout)]


class PackedAttention(Attention):
    """timm's self-attention, with the same parameters and names, within each image of a sequence."""

    def forward(self, x: Tensor, attn_mask: Layout, is_causal: bool = False) -> Tensor:  # type: ignore[override]
        """Attend within each image of the sequence (1, T, D); `attn_mask` is its `Layout`."""
        q, k, v = self.qkv(x)[0].unflatten(-1, (3, self.num_heads, -1)).unbind(1)
        # Under autocast the output of a norm is fp32.
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        attended = (_in_one_call if _has_kernel(v) else self._size_by_size)(q, k, v, attn_mask)
        return self.proj(self.norm(attended.flatten(1)[None]))

    def _size_by_size(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Attend in one call for each size; queries, keys and values are (T, heads, d)."""
        attended = [
            self._attend(*group) for group in zip(*(unpack(x, layout) for x in (q, k, v)), strict=True)
        ]
        return torch.cat([x.flatten(0, 1) for x in attended])

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend within each image: queries, keys, values (N, t, heads, d) to (N, t, heads, d)."""
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        if self.fused_attn:
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        scores = (q * self.scale) @ k.transpose(-2, -1)
        return (scores.softmax(dim=-1) @ v).transpose(1, 2)


def _has_kernel(v: Tensor) -> bool:
    """Return whether torch has a variable-length kernel for these values.

    Its gradient is a sum in random order, so it is not used where results must repeat bit for bit.
    """
    half = v.dtype in (torch.bfloat16, torch.float16)
    return v.is_cuda and half and not torch.are_deterministic_algorithms_enabled()


def _in_one_call(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """Attend with the variable-length kernel: queries, keys and values (T, heads, d) to (T, heads, d)."""
    longest = max(tokens for _, tokens in layout.sizes)
    attended = varlen_attn(q, k, v, layout.offsets, layout.offsets, longest, longest)
    assert isinstance(attended, Tensor)
    return attended


def unpack(x: Tensor, layout: Layout) -> list[Tensor]:
    """Split a sequence (T, …) into (N, t, …) for each size."""
    parts = x.split([images * tokens for images, tokens in layout.sizes])
    return [part.unflatten(0, shape) for part, shape in zip(parts, layout.sizes, strict=True)]
