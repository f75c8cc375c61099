"""The sample order as a pure function: position in an endless run → sample.

Epoch e visits n samples in the order of a permutation with the key (seed, e), computed in O(1) memory: a
uniform permutation (`sample_index`), or one that keeps reads sequential (`windows`). Several sources are
first mixed by position (`mixture`), and each source then has an order and epochs of its own.
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
    """Return the sample at each position p of the run: number p % n of the permutation with the key (seed, p
    // n).

    `position` is a non-negative int or int64 array of any shape; the result has the same shape and values in
    [0, n). `n` may be up to 2**40.
    """
    positions = np.asarray(position, dtype=np.int64)
    epochs, x = (part.astype(np.uint64).reshape(-1) for part in np.divmod(positions, n))
    x = permute(x, stream(seed, epochs), n)
    if isinstance(position, np.ndarray):
        return x.astype(np.int64).reshape(positions.shape)
    return int(x[0])


def share(batch_size: int, rank: int, world_size: int) -> range:
    """Return the places of the global batch that belong to a rank: contiguous, in rank order, equal to within
    one.

    The shares of all ranks together are the whole batch; with more ranks than places some shares are empty.
    """
    return range(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)


class Order:
    """Gives the source and sample of every position of a run. It is picklable and has no state.

    `sizes` are the numbers of samples of the sources, `weights` their shares of the positions (see `Mixture`
    for what is refused). `kind` "windowed" keeps reads sequential; this order also depends on the global
    `batch_size` and on `bytes`, the total size of each source. "uniform" does not depend on them.
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
        """Seed of each source, from which everything drawn by (seed, epoch, index) is derived."""
        if len(sizes) > 1:
            self.seeds = tuple(stream(seed, SOURCE, np.arange(len(sizes))).tolist())

    def locate(
        self, positions: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return source, epoch of that source, and sample index in it: int64 arrays of the shape of
        `positions`.
        """
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
        """Return the sample index in source `k` at the positions `local` within that source."""
        layout = self._layouts[k]
        if layout is None:
            return sample_index(local, self._sizes[k], self.seeds[k])
        return windowed_index(local, self._sizes[k], self.seeds[k], layout)
