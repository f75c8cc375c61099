"""Measuring a deep encoder on two shallow ones: a ViT's blocks are all alike, so anything counted is linear.

That takes a fraction of the time, and with activation recomputation a small one.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from pretrain.models.encoder import create

SHALLOW = (4, 8)
Key = TypeVar("Key")


def by_depth(
    measure: Callable[[dict[str, Any]], dict[Key, float]], name: str, kwargs: dict[str, Any]
) -> dict[Key, float]:
    """`measure` of the encoder that timm builds of these arguments.

    Encoders that take a `depth`, are deeper than 8 blocks, and whose parameters are linear in it, are
    measured at 4 and at 8 blocks; others as they are.
    """
    few, more = SHALLOW
    depth = _depth(name, kwargs)
    if depth is None or depth <= more:
        return measure(kwargs)
    less, least = (measure(kwargs | {"depth": d}) for d in (more, few))
    return {key: x + (depth - more) * (x - least.get(key, 0.0)) / (more - few) for key, x in less.items()}


def _depth(name: str, kwargs: dict[str, Any]) -> int | None:
    """The number of blocks, where the encoder is so many times the same one."""
    whole = _on_meta(name, kwargs)
    blocks = getattr(whole, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList):
        return None
    try:
        sizes = [_size(_on_meta(name, kwargs | {"depth": d})) for d in SHALLOW]
    except (TypeError, RuntimeError, ValueError, AssertionError, IndexError):
        return None
    few, more = SHALLOW
    predicted = sizes[1] + (len(blocks) - more) * (sizes[1] - sizes[0]) / (more - few)
    return len(blocks) if predicted == _size(whole) else None


def _on_meta(name: str, kwargs: dict[str, Any]) -> nn.Module:
    with torch.device("meta"):
        return create(name, kwargs)


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
