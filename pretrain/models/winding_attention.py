"""Attention among tokens of one class, which each block reads off an angle that it learns.

A linear map gives every token a point of the plane and a number. The point's angle, in one of C equal bins,
is the token's class; the number, rounded, its layer n. A query attends to the keys of its own class alone,
with weights ∝ e^{q·k/√d − |n_q − n_k|}: exactly zero across classes, and never an empty row, as a token has
its own class. Σ_c n_c² ≥ T²/C pairs are computed instead of T²: a constant factor, no other order of growth.

Bins and rounding have no derivative. Straight through, a key's score moves with the logarithm of its
probability for the bin it is in, and layers as if they were not rounded; pairs of different classes, which
are not computed, teach nothing.
"""

import functools
import math
from collections import defaultdict
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from timm.layers import Attention
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from pretrain.models.packed import unfit

BLOCK = 128
"""Tokens in a side of FlexAttention's blocks."""


class Addresses(NamedTuple):
    """Of each token, (N, T)."""

    classes: Tensor
    """int64, 0 … C − 1."""
    layers: Tensor
    """Whole numbers, float32, with gradient."""
    membership: Tensor
    """0, with the gradient of the logarithm of the token's probability for its own class."""


def wind(encoder: nn.Module, classes: int) -> None:
    """Make a plain ViT's attention winding, in place: its own parameters and names, and `attn.address`.

    The new weights are drawn from torch's generator. The encoder has to be `unfit` for nothing.
    """
    assert unfit(encoder) is None
    for block in cast(nn.Sequential, encoder.blocks):
        attention: Any = block.attn
        attention.__class__ = WindingAttention
        attention.address = Address(attention.qkv.in_features, classes)


class Address(nn.Linear):
    """Tokens (N, T, D) to their addresses, in float32 whatever the autocast."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__(width, 3)
        self.classes = classes
        # Tokens come from a layer norm, so these numbers have unit variance and angles go all around.
        nn.init.normal_(self.weight, std=width**-0.5)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Addresses:  # type: ignore[override]
        # The meta device, on which runs are planned, has no autocast of its own.
        with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
            a, b, height = F.linear(x.float(), self.weight.float(), self.bias.float()).unbind(-1)
            angle = torch.atan2(b, a)
            turn = angle.detach() / (2 * math.pi) % 1
            classes = (turn * self.classes).long().clamp(max=self.classes - 1)
            bins = torch.arange(self.classes, device=x.device)
            centres = (bins + 0.5) * (2 * math.pi / self.classes)
            # Von Mises densities around the bins' centres, as wide as the bins.
            sharpness = (self.classes / math.pi) ** 2
            logarithms = F.log_softmax(sharpness * torch.cos(angle[..., None] - centres), -1)
            own = torch.where(bins == classes[..., None], logarithms, 0).sum(-1)
            layers = height + (height.round() - height).detach()
            return Addresses(classes, layers, own - own.detach())


class WindingAttention(Attention):
    """timm's self-attention among tokens of one class."""

    address: Address

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Tokens (N, T, D) to (N, T, D)."""
        assert attn_mask is None and not is_causal
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        # Under autocast a norm's output is fp32.
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        addresses = self.address(x)
        blockwise = x.is_cuda and not torch.are_deterministic_algorithms_enabled()
        attend = attend_in_blocks if blockwise else functools.partial(attend_sorted, self.address.classes)
        attended = attend(q * self.scale, k, v, addresses)
        return self.proj(self.norm(attended.flatten(2)))


@torch.compiler.disable
def attend_sorted(count: int, q: Tensor, k: Tensor, v: Tensor, addresses: Addresses) -> Tensor:
    """Queries, already scaled, keys and values (N, T, heads, d) to (N, T, heads, d), on any device.

    All images' tokens are sorted by class, of which there are `count`. Groups are filled up to one
    of four sizes an octave and those of one size attend in one batch: at most 1.6 times the pairs needed.
    """
    images, tokens, heads, _ = q.shape
    keys = addresses.classes + torch.arange(images, device=q.device)[:, None] * count
    order = keys.flatten().argsort(stable=True)
    sorted_q, sorted_k, sorted_v = (x.flatten(0, 1)[order] for x in (q, k, v))
    layers, membership = (x.flatten()[order] for x in (addresses.layers, addresses.membership))
    groups = _group_by_size(_sizes(keys, count))
    places, results = [], []
    for size, members in groups.items():
        starts, lengths = torch.tensor(members, device=q.device).unbind(1)
        along = torch.arange(size, device=q.device)
        there = along < lengths[:, None]
        index = torch.where(there, starts[:, None] + along, starts[:, None])
        n = layers[index]
        bias = membership[index][:, None, :] - (n[:, :, None] - n[:, None, :]).abs()
        bias = bias.masked_fill(~there[:, None, :], -torch.inf)
        group_q, group_k, group_v = (x[index].transpose(1, 2) for x in (sorted_q, sorted_k, sorted_v))
        weights = (group_q @ group_k.mT + bias[:, None]).softmax(-1).to(group_v.dtype)
        # Rows of what was filled up go to a place of their own, behind the last token.
        places.append(torch.where(there, index, images * tokens).flatten())
        results.append((weights @ group_v).transpose(1, 2).flatten(0, 1))
    out = torch.cat(results)
    of_sorted = torch.cat(places).argsort(stable=True)[: images * tokens]
    return out[of_sorted[order.argsort()]].view(images, tokens, heads, -1)


def _sizes(keys: Tensor, count: int) -> list[int]:
    """How many tokens each group has, in the order of keys (N, T)."""
    images, tokens = keys.shape
    if keys.is_meta or isinstance(keys, FakeTensor):
        # Of tokens without values nothing is known; the classes of what is planned are equally full.
        return [len(range(c, tokens, count)) for c in range(min(count, tokens))] * images
    return [size for size in torch.bincount(keys.flatten()).tolist() if size]


def _group_by_size(sizes: list[int]) -> dict[int, list[tuple[int, int]]]:
    """(start, length) of all groups, by the size that they are filled up to."""
    groups: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    start = 0
    for length in sizes:
        step = 1 << max(0, length.bit_length() - 3)
        groups[-(-length // step) * step].append((start, length))
        start += length
    return groups


def attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, addresses: Addresses) -> Tensor:
    """The same by FlexAttention, whose kernel passes over blocks without a pair of one class."""
    order = addresses.classes.argsort(dim=1, stable=True)
    classes, layers, membership = (x.gather(1, order) for x in addresses)
    index = order[:, :, None, None].expand_as(q)
    q, k, v = (x.gather(1, index).transpose(1, 2) for x in (q, k, v))

    def score(score: Tensor, n: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score + membership[n, j] - (layers[n, i] - layers[n, j]).abs()

    attend: Any = flex_attention if torch.compiler.is_compiling() else _compiled_flex_attention(q.device.type)
    attended = attend(q, k, v, score_mod=score, block_mask=block_mask(classes), scale=1.0)
    return torch.empty_like(attended).transpose(1, 2).scatter(1, index, attended.transpose(1, 2))


def block_mask(classes: Tensor) -> BlockMask:
    """Which blocks of sorted classes (N, T) have pairs of one class; exact pairs are decided within them."""
    tokens = classes.shape[1]
    blocks = -(-tokens // BLOCK)
    filled = torch.cat([classes, classes[:, -1:].expand(-1, blocks * BLOCK - tokens)], 1)
    first, last = filled[:, ::BLOCK], filled[:, BLOCK - 1 :: BLOCK]
    meet = (first[:, :, None] <= last[:, None, :]) & (first[:, None, :] <= last[:, :, None])
    indices = meet.to(torch.int8).argsort(dim=-1, descending=True, stable=True).to(torch.int32)

    def same(n: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return classes[n, i] == classes[n, j]

    return BlockMask.from_kv_blocks(
        meet.sum(-1, dtype=torch.int32)[:, None],
        indices[:, None],
        BLOCK_SIZE=BLOCK,
        mask_mod=same,
        seq_lengths=(tokens, tokens),
    )


@functools.cache
def _compiled_flex_attention(device: str) -> Any:
    """Uncompiled it computes all pairs; on a CPU that is for tests."""
    return torch.compile(flex_attention, dynamic=False) if device == "cuda" else flex_attention
