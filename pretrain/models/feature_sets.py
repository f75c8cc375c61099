"""The feature sets of an encoder: vectors from other places of the network than its output.

    embedding    the output of timm's model
    patch_mean   mean of the last block's patch tokens, if the encoder's output is its class token
    last2, last4 the vectors of the last 2 or 4 blocks, each made like the embedding, concatenated
    stages       mean, then standard deviation, over the pixels of the maps of the last three stages, early to
                 late, if the encoder works in stages of falling resolution, as ConvNets and Swin do
    map          a vector for each cell of the image, for masks: see `map_of`

`give` makes an encoder return another set than its embedding.
"""

import inspect
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from isotorus.errors import UserError

FEATURES = "feature_set"
"""Name of the argument of an encoder that returns another set than its embedding, and of its attribute."""
MAP = "map"
"""Name of the feature set that has a vector for each cell of an image."""
LAYERS = 4
"""Largest number of last blocks whose vectors are concatenated (Caron et al. 2021, arXiv:2104.14294)."""
STAGES = 3
"""Number of last stages whose maps are summarised."""


def give(encoder: nn.Module, name: str) -> None:
    """Make an encoder return the feature set `name`, in place; raises UserError if it does not have it."""
    depth, stages = count_blocks(encoder), count_stages(encoder)
    if name == MAP:
        _give_map(encoder)
        return
    has = {
        "patch_mean": depth > 0 and getattr(encoder, "global_pool", "") == "token",
        "last2": depth >= 2,
        "last4": depth >= LAYERS,
        "stages": stages > 0,
    }
    if not has.get(name, False):
        own = ", ".join(["embedding", *(key for key, found in has.items() if found)])
        raise UserError(f"feature set {name!r}: a {type(encoder).__name__} has only {own}; use one of these")

    def forward(self: nn.Module, images: Tensor) -> Tensor:
        """Return the feature set (N, D) of images (N, C, H, W)."""
        sets = of_tokens(self, images, depth) if depth else of_stages(self, images, stages)
        return sets[name]

    # Engines hook this module and checkpoints use its names, so it has to stay, with another `forward`.
    encoder.__class__ = type(type(encoder).__name__, (type(encoder),), {"forward": forward, FEATURES: name})


def _give_map(encoder: nn.Module) -> None:
    """Make an encoder return its map (N, h, w, D), in place; raises UserError if it has none."""
    if not hasattr(encoder, "forward_intermediates"):
        raise UserError(
            f"a {type(encoder).__name__} gives no patch tokens and no maps (forward_intermediates of timm), "
            "which masks are predicted from; use an encoder such as a ViT, ConvNeXt or ResNet"
        )

    def forward(self: nn.Module, images: Tensor) -> Tensor:
        """Return the map (N, h, w, D) of images (N, C, H, W)."""
        return map_of(self, images, STAGES).movedim(1, -1)

    encoder.__class__ = type(type(encoder).__name__, (type(encoder),), {"forward": forward, FEATURES: MAP})


def upsampled(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Return maps (N, h, w, K) of logits as (N, K, height, width), bilinearly interpolated."""
    return F.interpolate(maps.movedim(-1, 1), size=tuple(size), mode="bilinear")


def freeze_unread(encoder: nn.Module, channels: int, size: int) -> None:
    """Take the parameters that a feature set does not depend on out of training.

    Engines wait for a gradient of every parameter that is trained. Nothing is computed: `channels` and `size`
    of the images give shapes alone.
    """
    if not hasattr(encoder, FEATURES):
        return
    tensors = {
        name: torch.empty_like(x, device="meta").requires_grad_(x.requires_grad)
        for name, x in chain(encoder.named_parameters(), encoder.named_buffers())
    }
    images = torch.empty(2, channels, size, size, device="meta")
    vectors = functional_call(encoder, tensors, (images,))
    trained = [name for name, x in tensors.items() if x.requires_grad]
    gradients = torch.autograd.grad(vectors.sum(), [tensors[name] for name in trained], allow_unused=True)
    for name, gradient in zip(trained, gradients, strict=True):
        if gradient is None:
            encoder.get_parameter(name).requires_grad_(False)


def of_tokens(encoder: Any, images: Tensor, depth: int) -> dict[str, Tensor]:
    """Return the sets that need the tokens of the last blocks of a ViT of `depth` blocks, embedding first."""
    prefix = encoder.num_prefix_tokens
    last, layers = encoder.forward_intermediates(
        images, indices=min(LAYERS, depth), return_prefix_tokens=prefix > 0, norm=True, output_fmt="NLC"
    )
    tokens = [torch.cat([x[1], x[0]], dim=1) if prefix else x for x in layers]
    vectors = [encoder.forward_head(x) for x in tokens]
    sets = {"embedding": encoder.forward_head(last)}
    if getattr(encoder, "global_pool", "") == "token":
        sets["patch_mean"] = tokens[-1][:, prefix:].mean(1)
    for count in (2, LAYERS):
        if len(vectors) >= count:
            sets[f"last{count}"] = torch.cat(vectors[-count:], dim=1)
    return sets


def of_stages(encoder: Any, images: Tensor, stages: int) -> dict[str, Tensor]:
    """Return the embedding, and the set that needs the maps (N, channels, H, W) of the last stages."""
    last, maps = encoder.forward_intermediates(images, indices=stages)
    pixels = [x.float().flatten(2) for x in maps]
    moments = [part for x in pixels for part in (x.mean(2), x.std(2, correction=0))]
    return {"embedding": encoder.forward_head(last), "stages": torch.cat(moments, dim=1)}


def map_of(encoder: Any, images: Tensor, stages: int) -> Tensor:
    """Return the map (N, width, h, w) of an encoder in float32: a vector for each cell of the image.

    For a ViT, these are the patch tokens of the last block after its norm, without class and register tokens.
    For an encoder that works in stages, they are the maps of the last `stages`, resized to the largest of
    them and concatenated (hypercolumns: Hariharan et al. 2015, arXiv:1411.5752).
    """
    maps = encoder.forward_intermediates(
        images,
        indices=min(stages, count_stages(encoder)) or 1,
        norm=True,
        output_fmt="NCHW",
        intermediates_only=True,
    )
    size = maps[0].shape[2:]
    resized = [F.interpolate(x.float(), size=size, mode="bilinear") for x in maps[1:]]
    return torch.cat([maps[0].float(), *resized], dim=1)


def count_blocks(encoder: nn.Module) -> int:
    """Return the number of blocks of an encoder that can give all tokens of them, as timm's ViTs; else 0."""
    forward = getattr(encoder, "forward_intermediates", None)
    if forward is None or "return_prefix_tokens" not in inspect.signature(forward).parameters:
        return 0
    blocks = getattr(encoder, "blocks", None)
    return len(blocks) if isinstance(blocks, nn.Sequential | nn.ModuleList) else 0


def count_stages(encoder: nn.Module) -> int:
    """Return the number of stages that are summarised; 0 for ViTs, and for encoders of one resolution."""
    if count_blocks(encoder) or not hasattr(encoder, "forward_intermediates"):
        return 0
    described = list(getattr(encoder, "feature_info", None) or [])
    reductions = {stage.get("reduction") for stage in described}
    several = len(reductions) > 1 and hasattr(encoder, "forward_head")
    return min(STAGES, len(described)) if several else 0
