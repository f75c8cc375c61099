"""Encoders that repeat one kind of block, which can be examined with a few blocks instead of many."""

import functools
import json
from typing import Any

from torch import nn

from isotorus.errors import UserError
from pretrain.models.encoder import create_on_meta
from pretrain.models.feature_sets import FEATURES, LAYERS


def with_few_blocks(name: str, kwargs: dict[str, Any], few: int = 2) -> dict[str, Any]:
    """Return arguments of the same encoder with `few` blocks.

    Such an encoder maps images to vectors of the same size and draws the same kinds of random numbers, in a
    small part of the time. An encoder whose vectors come from several blocks keeps so many. If the encoder
    has no more blocks, or different ones, `kwargs` is returned.
    """
    few = max(few, LAYERS) if FEATURES in kwargs else few
    depth = repeated_blocks(name, json.dumps(kwargs))
    return kwargs if depth is None or depth <= few else kwargs | {"depth": few}


@functools.cache
def repeated_blocks(name: str, arguments: str) -> int | None:
    """Return the number of blocks if the encoder repeats one kind of block; otherwise None.

    `arguments` is JSON. An encoder repeats one kind if its builder takes a `depth`, and its number of
    parameters is linear in depth.
    """
    kwargs = {key: x for key, x in json.loads(arguments).items() if key != FEATURES}
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
