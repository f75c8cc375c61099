"""When a run first saw each of some images, from its sample order, which is a function of (seed, step)."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from data_pipeline.order import Order
from pretrain.recording.who_saw.past_sets import State

_AT_ONCE = 2**20
"""Positions of the order that are looked at together."""


class Reading(NamedTuple):
    """How a run read its data."""

    states: Sequence[State]
    weights: Sequence[float]
    seed: int
    kind: Literal["uniform", "windowed"]
    batch_size: int


def first_batches(reading: Reading, start: int, stop: int) -> dict[tuple[int, int], int]:
    """Return the first batch in [start, stop) that holds each image, by source and index; those that none
    holds are left out.
    """
    targets = {k: np.array(state.images) for k, state in enumerate(reading.states) if state.images}
    wanted = sum(map(len, targets.values()))
    order = Order(
        [state.count for state in reading.states],
        reading.weights,
        reading.seed,
        reading.kind,
        batch_size=reading.batch_size,
        bytes=[state.bytes for state in reading.states],
    )
    found: dict[tuple[int, int], int] = {}
    size = reading.batch_size
    batches = max(_AT_ONCE // size, 1)
    for first in range(start, stop, batches):
        if len(found) == wanted:
            break
        positions = np.arange(first * size, min(first + batches, stop) * size, dtype=np.int64)
        source, _, index = order.locate(positions)
        for k, images in targets.items():
            for at in np.flatnonzero((source == k) & np.isin(index, images)).tolist():
                found.setdefault((k, int(index[at])), first + at // size)
    return found
