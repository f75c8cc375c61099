"""Attention among tokens of one class; each block learns the classes of its tokens.

A linear map gives every token a point in the plane and a number. The angle of the point lies in one of C
equal bins, the token's class; the rounded number is the token's layer n. A query attends only to keys of its
own class, with weights ∝ e^{q·k/√d − |n_q − n_k|}. Weights are exactly 0 between classes, and no row is
empty, as each token is in its own class. Σ_c n_c² ≥ T²/C pairs are computed instead of T²: a constant factor,
not a lower order of growth.

Bins and rounding have no derivative, so gradients pass straight through: the score of a key changes with the
logarithm of its probability for its bin, and layers change as if they were not rounded. Pairs of different
classes are not computed and have no gradient.

No library has this attention. On CUDA it runs in torch's FlexAttention, on CPUs in batched matrix products
over sorted tokens. Against torch's fused dense attention on one CPU thread, 8 classes are a little slower at
256 tokens and 3 to 4 times as fast from 1,024 tokens on, and need more memory (`python
benchmarks/attention.py`, in benchmarks/RESULTS.md).
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

from isotorus.device import without_autocast
from pretrain.models.several_sizes import unfit

BLOCK = 128
"""Tokens along each side of FlexAttention's blocks."""


class Addresses(NamedTuple):
    """The class and the layer of each token; all tensors are (N, T)."""

    classes: Tensor
    """int64, 0 … C − 1."""
    layers: Tensor
    """Whole numbers in float32, with a gradient."""
    membership: Tensor
    """0, with the gradient of the logarithm of the token's probability for its own class."""


def wind(encoder: nn.Module, classes: int) -> None:
    """Make the attention of a plain ViT winding, in place: parameters stay, `attn.address` is added.

    The new weights are drawn from torch's generator. `packed.unfit(encoder)` must be None.
    """
    assert unfit(encoder) is None
    for block in cast(nn.Sequential, encoder.blocks):
        attention: Any = block.attn
        # timm's attention cannot be given another function, and a new module would have to copy all its
        # settings. Changing the class keeps parameters and names, which checkpoints rely on.
        attention.__class__ = WindingAttention
        attention.address = Address(attention.qkv.in_features, classes)


class Address(nn.Linear):
    """Maps tokens (N, T, D) to their addresses, in float32 under autocast too."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__(width, 3)
        self.classes = classes
        # Tokens come from a layer norm, so these numbers have unit variance, and angles lie all around the
        # circle.
        nn.init.normal_(self.weight, std=width**-0.5)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Addresses:  # type: ignore[override]
        with without_autocast(x.device):
            a, b, height = F.linear(x.float(), self.weight.float(), self.bias.float()).unbind(-1)
            angle = torch.atan2(b, a)
            turn = angle.detach() / (2 * math.pi) % 1
            classes = (turn * self.classes).long().clamp(max=self.classes - 1)
            bins = torch.arange(self.classes, device=x.device)
            centres = (bins + 0.5) * (2 * math.pi / self.classes)
            # Von Mises densities around the centres of the bins, as wide as the bins.
            sharpness = (self.classes / math.pi) ** 2
            logarithms = F.log_softmax(sharpness * torch.cos(angle[..., None] - centres), -1)
            own = torch.where(bins == classes[..., None], logarithms, 0).sum(-1)
            layers = height + (height.round() - height).detach()
            return Addresses(classes, layers, own - own.detach())


class WindingAttention(Attention):
    """timm's self-attention, restricted to tokens of one class."""

    address: Address

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Map tokens (N, T, D) to (N, T, D)."""
        assert attn_mask is None and not is_causal
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        # Under autocast the output of a norm is fp32.
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        addresses = self.address(x)
        blockwise = x.is_cuda and not torch.are_deterministic_algorithms_enabled()
        attend = attend_in_blocks if blockwise else functools.partial(attend_sorted, self.address.classes)
        if torch.compiler.is_exporting():
            attend = attend_densely
        attended = attend(q * self.scale, k, v, addresses)
        return self.proj(self.norm(attended.flatten(2)))


@torch.compiler.disable
def attend_sorted(count: int, q: Tensor, k: Tensor, v: Tensor, addresses: Addresses) -> Tensor:
    """Map queries, already scaled, keys and values (N, T, heads, d) to (N, T, heads, d), on any device.

    The tokens of all images are sorted by image and class; there are `count` classes. Each group of tokens is
    filled up to one of four sizes in an octave, and groups of equal size attend in one batch. At most 1.6
    times the necessary pairs are computed.
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
        # Rows that were added to fill a group go to an index behind the last token.
        places.append(torch.where(there, index, images * tokens).flatten())
        results.append((weights @ group_v).transpose(1, 2).flatten(0, 1))
    out = torch.cat(results)
    of_sorted = torch.cat(places).argsort(stable=True)[: images * tokens]
    return out[of_sorted[order.argsort()]].view(images, tokens, heads, -1)


def attend_densely(q: Tensor, k: Tensor, v: Tensor, addresses: Addresses) -> Tensor:
    """Do the same as `attend_sorted` over all pairs of tokens, with operators that exported graphs have."""
    classes, layers, membership = (x[:, None] for x in addresses)
    bias = membership[..., None, :] - (layers[..., :, None] - layers[..., None, :]).abs()
    bias = bias.masked_fill(classes[..., :, None] != classes[..., None, :], -torch.inf)
    weights = (q.transpose(1, 2) @ k.permute(0, 2, 3, 1) + bias).softmax(-1).to(v.dtype)
    return (weights @ v.transpose(1, 2)).transpose(1, 2)


def _sizes(keys: Tensor, count: int) -> list[int]:
    """Return the number of tokens in each group, in the order of the keys (N, T)."""
    images, tokens = keys.shape
    if keys.is_meta or isinstance(keys, FakeTensor):
        # Tokens without values have no classes; `plan` assumes that all classes are equally full.
        return [len(range(c, tokens, count)) for c in range(min(count, tokens))] * images
    return [size for size in torch.bincount(keys.flatten()).tolist() if size]


def _group_by_size(sizes: list[int]) -> dict[int, list[tuple[int, int]]]:
    """Return (start, length) of all groups, by the size to which they are filled up."""
    groups: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    start = 0
    for length in sizes:
        step = 1 << max(0, length.bit_length() - 3)
        groups[-(-length // step) * step].append((start, length))
        start += length
    return groups


def attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, addresses: Addresses) -> Tensor:
    """Do the same as `attend_sorted` with FlexAttention, which skips blocks without a common class."""
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
    """Return which blocks of sorted classes (N, T) contain pairs of one class.

    Inside these blocks FlexAttention masks single pairs.
    """
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
    """Return FlexAttention, compiled on CUDA; uncompiled it computes all pairs, which tests on a CPU use."""
    return torch.compile(flex_attention, dynamic=False) if device == "cuda" else flex_attention
