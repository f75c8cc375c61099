"""The order of samples as a pure function: position in an endless run → sample.

Epoch e of a run over n samples visits them by a permutation with the key (seed, e), in O(1) memory:
a uniform one (`sample_index`), or one that keeps reads sequential (`windows`). Several sources are
mixed by position first (`mixture`), and each then has an order and epochs of its own.
"""

from collections.abc import Sequence
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from data_pipeline.mixture import PERIOD, Mixture
from data_pipeline.permutation import SOURCE, permute, stream
from data_pipeline.windows import Layout, layout_for, windowed_index

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
        self._mixture = Mixture(weights, seed)
        self._sizes = tuple(sizes)
        self.seeds: tuple[int, ...] = (seed,)
        """Seed of each source: whatever is drawn by (seed, epoch, index) starts from that one."""
        if len(sizes) > 1:
            self.seeds = tuple(stream(seed, SOURCE, np.arange(len(sizes))).tolist())
        self._layouts: tuple[Layout, ...] | None = None
        if kind == "windowed":
            stripes = [max(1, round(batch_size * slots / PERIOD)) for slots in self._mixture.slots]
            self._layouts = tuple(map(layout_for, stripes, sizes, bytes))

    def locate(
        self, positions: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Source, epoch in that source, and index in it: int64, of the positions' shape."""
        source, local = self._mixture.locate(positions)
        epoch, index = np.empty_like(local), np.empty_like(local)
        for k in np.unique(source).tolist():
            at = source == k
            epoch[at] = local[at] // self._sizes[k]
            index[at] = self._index(k, local[at])
        return source, epoch, index

    def _index(self, k: int, local: NDArray[np.int64]) -> NDArray[np.int64]:
        if self._layouts is None:
            return sample_index(local, self._sizes[k], self.seeds[k])
        return windowed_index(local, self._sizes[k], self.seeds[k], self._layouts[k])
