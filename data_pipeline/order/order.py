"""The order of samples as a pure function: position in an endless run → sample.

Epoch e of a run over n samples visits them by a permutation with the key (seed, e), in O(1) memory:
a uniform one (`sample_index`), or one that keeps reads sequential (`windows`). Several sources are
mixed by position first (`mixture`), and each then has an order and epochs of its own.
"""

from collections.abc import Sequence
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from data_pipeline.order.mixture import PERIOD, Mixture
from data_pipeline.order.permutation import SOURCE, permute, stream
from data_pipeline.order.windows import lanes_for, layout_for, windowed_index

Position = TypeVar("Position", int, NDArray[np.int64])


def sample_index(position: Position, n: int, seed: int) -> Position:
    """The sample that position p of the run consumes: `permutation(seed, p // n)` of `p % n`.

    `position` is a non-negative int or int64 array of any shape; the result has the same shape, with
    values in [0, n). `n` may be as large as 2**40.
    """
    positions = np.asarray(position, dtype=np.int64)
    epochs, x = (part.astype(np.uint64).reshape(-1) for part in np.divmod(positions, n))
    x = permute(x, stream(seed, epochs), n)
    if isinstance(position, np.ndarray):
        return x.astype(np.int64).reshape(positions.shape)
    return int(x[0])


def share(batch_size: int, rank: int, world_size: int) -> range:
    """Which places of the global batch are this rank's: contiguous, in rank order, equal to within one.

    The shares of any number of ranks up to `batch_size` cover it; with more, some are empty.
    """
    return range(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)


class Order:
    """Which sample of which source every position of a run consumes; picklable, without state.

    `sizes` are the samples of each source and `weights` its share of the positions (see `Mixture` for
    what is refused). `kind` "windowed" keeps reads sequential, for which it goes by the global
    `batch_size` and the `bytes` that the samples of each source take in all; the order depends on
    them. "uniform" does not look at them.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float],
        seed: int,
        kind: Literal["uniform", "windowed"] = "uniform",
        *,
        batch_size: int,
        bytes: Sequence[int],
    ) -> None:
        assert len(sizes) == len(weights) == len(bytes) >= 1, (sizes, weights, bytes)
        lanes = lanes_for(batch_size) if kind == "windowed" else 1
        self._sizes = tuple(sizes)
        self._batch_size, self._lane_width = batch_size, batch_size // lanes
        self._mixture = Mixture(weights, seed, lanes)
        self._layouts = [
            layout_for(lanes, n, size, slots / PERIOD) if kind == "windowed" else None
            for n, size, slots in zip(sizes, bytes, self._mixture.slots, strict=True)
        ]
        self.seeds: tuple[int, ...] = (seed,)
        """Seed of each source: whatever is drawn by (seed, epoch, index) starts from that one."""
        if len(sizes) > 1:
            self.seeds = tuple(stream(seed, SOURCE, np.arange(len(sizes))).tolist())

    def locate(
        self, positions: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Source, epoch in that source, and index in it: int64, of the positions' shape."""
        step, column = np.divmod(positions, self._batch_size)
        lane, rest = np.divmod(column, self._lane_width)
        source, local = self._mixture.locate(step * self._lane_width + rest, lane)
        epoch, index = np.empty_like(local), np.empty_like(local)
        for k in np.unique(source).tolist():
            at = source == k
            epoch[at] = local[at] // self._sizes[k]
            index[at] = self._index(k, local[at])
        return source, epoch, index

    def _index(self, k: int, local: NDArray[np.int64]) -> NDArray[np.int64]:
        layout = self._layouts[k]
        if layout is None:
            return sample_index(local, self._sizes[k], self.seeds[k])
        return windowed_index(local, self._sizes[k], self.seeds[k], layout)
