"""Measure a deep encoder from two shallow ones: a ViT's blocks are alike, so quantities are linear in depth.

This takes a small part of the time that the whole encoder would take.
"""

import functools
import json
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from isotorus.errors import UserError
from pretrain.models.encoder import create_on_meta

SHALLOW = (4, 5)
Key = TypeVar("Key")


def by_depth(
    measure: Callable[[dict[str, Any]], dict[Key, float]],
    name: str,
    kwargs: dict[str, Any],
    shallow: tuple[int, int] | None = None,
) -> dict[Key, float]:
    """Return `measure` of the encoder that timm builds with these arguments.

    An encoder that takes a `depth`, has more blocks than the larger of the two numbers `shallow` (4 and 5),
    and whose number of parameters is linear in depth, is measured at these two depths; any other as it is.
    """
    few, more = shallow or SHALLOW
    depth = _depth(name, json.dumps(kwargs))
    if depth is None or depth <= more:
        return measure(kwargs)
    less, least = (measure(kwargs | {"depth": d}) for d in (more, few))
    return {key: x + (depth - more) * (x - least.get(key, 0.0)) / (more - few) for key, x in less.items()}


@functools.cache
def _depth(name: str, arguments: str) -> int | None:
    """Return the number of blocks if the encoder repeats one kind of block; otherwise None.

    `arguments` is JSON.
    """
    kwargs = json.loads(arguments)
    whole = create_on_meta(name, kwargs)
    blocks = getattr(whole, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList):
        return None
    try:
        sizes = [_size(create_on_meta(name, kwargs | {"depth": d})) for d in (1, 2)]
    except UserError:  # its builder takes no such depth
        return None
    predicted = sizes[1] + (len(blocks) - 2) * (sizes[1] - sizes[0])
    return len(blocks) if predicted == _size(whole) else None


def _size(module: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in module.parameters())
