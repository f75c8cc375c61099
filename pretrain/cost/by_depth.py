"""Measure a deep encoder from two shallow ones: a ViT's blocks are alike, so quantities are linear in depth.

This takes a small part of the time that the whole encoder would take.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from isotorus.errors import UserError
from pretrain.models.encoder import create

SHALLOW = (4, 8)
Key = TypeVar("Key")


def by_depth(
    measure: Callable[[dict[str, Any]], dict[Key, float]], name: str, kwargs: dict[str, Any]
) -> dict[Key, float]:
    """Return `measure` of the encoder that timm builds with these arguments.

    An encoder that takes a `depth`, has more than 8 blocks, and whose number of parameters is linear in
    depth, is measured at 4 and at 8 blocks; any other as it is.
    """
    few, more = SHALLOW
    depth = _depth(name, kwargs)
    if depth is None or depth <= more:
        return measure(kwargs)
    less, least = (measure(kwargs | {"depth": d}) for d in (more, few))
    return {key: x + (depth - more) * (x - least.get(key, 0.0)) / (more - few) for key, x in less.items()}


def _depth(name: str, kwargs: dict[str, Any]) -> int | None:
    """Return the number of blocks if the encoder repeats one kind of block; otherwise None."""
    whole = _on_meta(name, kwargs)
    blocks = getattr(whole, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList):
        return None
    try:
        sizes = [_size(_on_meta(name, kwargs | {"depth": d})) for d in SHALLOW]
    except UserError:  # its builder takes no such depth
        return None
    few, more = SHALLOW
    predicted = sizes[1] + (len(blocks) - more) * (sizes[1] - sizes[0]) / (more - few)
    return len(blocks) if predicted == _size(whole) else None


def _on_meta(name: str, kwargs: dict[str, Any]) -> nn.Module:
    """Build an encoder on the meta device."""
    with torch.device("meta"):
        return create(name, kwargs)


def _size(module: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in module.parameters())
