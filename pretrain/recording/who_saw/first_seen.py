"""When a run first saw each of some images, from its sample order, which is a function of (seed, step)."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

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
    visited: Sequence[NDArray[np.int64]] | None
    """The samples of each source that the run visited, in their order; None if it visited all."""


def first_batches(reading: Reading, start: int, stop: int) -> dict[tuple[int, int], int]:
    """Return the first batch in [start, stop) that holds each image, by source and index.

    Images that are in no batch are left out.
    """
    targets = {k: np.array(state.images) for k, state in enumerate(reading.states) if state.images}
    sizes = [state.count for state in reading.states]
    if reading.visited is not None:
        targets = {k: np.intersect1d(images, reading.visited[k]) for k, images in targets.items()}
        sizes = [len(samples) for samples in reading.visited]
    wanted = sum(map(len, targets.values()))
    order = Order(
        sizes,
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
            here = np.flatnonzero(source == k)
            samples = index[here] if reading.visited is None else reading.visited[k][index[here]]
            asked = np.isin(samples, images)
            for at, sample in zip(here[asked].tolist(), samples[asked].tolist(), strict=True):
                found.setdefault((k, sample), first + at // size)
    return found
