"""Measure a deep encoder from two shallow ones: a ViT's blocks are alike, so quantities are linear in depth.

This takes a small part of the time that the whole encoder would take.
"""

import json
from collections.abc import Callable
from typing import Any, TypeVar

from pretrain.models.feature_sets import FEATURES
from pretrain.models.repeated import repeated_blocks

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
    For an encoder that returns vectors of several blocks the two are `SHALLOW`, as smaller ones have too few.
    """
    few, more = SHALLOW if shallow is None or FEATURES in kwargs else shallow
    depth = repeated_blocks(name, json.dumps(kwargs))
    if depth is None or depth <= more:
        return measure(kwargs)
    less, least = (measure(kwargs | {"depth": d}) for d in (more, few))
    return {key: x + (depth - more) * (x - least.get(key, 0.0)) / (more - few) for key, x in less.items()}
