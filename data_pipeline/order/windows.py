"""The two-level order: shuffled, and yet every rank reads its own stretches of the shards, one by one.

A uniform permutation makes every read a random one. Here index = P(T(position)) within each epoch,
where T decides which part of the epoch is whose and P what lies there. Neither knows the number of
ranks, and both are exact permutations of [0, n) in closed form.

T, a transposition. A global batch has columns, `lanes` of them and all of one width, and a rank takes
the same columns of every batch (`order.Order`). Lane l consumes the positions that are l modulo
`lanes`; T lays these end to end, so that a lane, and with it a rank, walks a contiguous stretch of
addresses.

P, a shuffle by blocks and windows. `block` consecutive samples are a block: index rows are in the
order of shards and offsets, so it is one byte range, or two at the end of a shard. Blocks are permuted,
and `window` of them in a row are a window, whose samples are permuted among each other. Blocks are
counted from a random sample on, so that they begin elsewhere each epoch, and the short one at the end
holds anything.

At any time each lane reads inside one window. So a rank that keeps what it has read of two windows a
lane reads every byte of its share about once, in whole blocks.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.order.permutation import BLOCKS, START, WINDOW, permute, stream

_LANES = 64
_SAMPLES_A_LANE = 16
_BLOCK_BYTES = 32 * 2**20
_BLOCKS_A_WINDOW = 4
_OPEN_BLOCKS = 256


@dataclass(frozen=True)
class Layout:
    """The sizes of a two-level order; part of what a run's order depends on."""

    lanes: int
    """Stretches that an epoch is divided into, walked side by side."""
    block: int
    """Consecutive samples that are read together."""
    window: int
    """Blocks whose samples are shuffled among each other."""


def lanes_for(batch_size: int) -> int:
    """The most columns of one width in a global batch, up to 64, or one for 16 samples if that is more.

    So 64 ranks of 16 images, or 512 of 64, have one and four lanes each. Ranks that outnumber lanes
    share them, and then read the same blocks.
    """
    most = max(_LANES, batch_size // _SAMPLES_A_LANE)
    return next(lanes for lanes in range(min(most, batch_size), 0, -1) if batch_size % lanes == 0)


def layout_for(lanes: int, n: int, bytes: int, share: float = 1.0) -> Layout:
    """The layout for a source of `n` samples that take `bytes`, with its share of every batch in (0, 1].

    Blocks are of about 32 MiB, long enough that opening one costs little. 4 make a window, or more so
    that at least 256 are open in all lanes together (8 GiB in the caches of all ranks) and mix in a
    batch; in proportion for a source that is but a share of it.

    A source of no more blocks than that is one window, so its order is a uniform permutation: any cache
    holds it whole, and mixing by blocks would only cost variety.
    """
    assert lanes >= 1 and n >= 1 and bytes >= 0 and 0 < share <= 1, (lanes, n, bytes, share)
    block = min(max(_BLOCK_BYTES * n // max(bytes, 1), 1), n)
    blocks = -(-n // block)
    if blocks <= _OPEN_BLOCKS * share:
        return Layout(lanes, block, blocks)
    return Layout(lanes, block, math.ceil(max(_BLOCKS_A_WINDOW, _OPEN_BLOCKS / lanes) * share))


def windowed_index(position: NDArray[np.int64] | int, n: int, seed: int, layout: Layout) -> NDArray[np.int64]:
    """The sample that position p of the run consumes, p // n being its epoch and p % lanes its lane.

    `position` is a non-negative int64 array of any shape; the result has the same shape, with values
    in [0, n). `n` may be as large as 2**40.
    """
    assert 1 <= n <= 2**40 and min(layout.lanes, layout.block, layout.window) >= 1, (n, layout)
    positions = np.asarray(position, dtype=np.int64)
    p = positions.reshape(-1)
    epochs = p // n
    addresses = _transpose(p, epochs * n, n, layout.lanes)
    start = (stream(seed, START, epochs) % np.uint64(n)).astype(np.int64)
    index = (_shuffle(addresses, epochs, n, seed, layout) + start) % n
    return index.reshape(positions.shape)


def _transpose(p: NDArray[np.int64], begin: NDArray[np.int64], n: int, lanes: int) -> NDArray[np.int64]:
    """T: the address in [0, n) of position p in the epoch of the positions [begin, begin + n)."""
    lane = p % lanes

    def in_lower_lanes(end: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many positions below `end` are in lower lanes than p."""
        return end // lanes * lane + np.minimum(end % lanes, lane)

    first = (begin - lane + lanes - 1) // lanes  # row of the lane's first position in the epoch
    return in_lower_lanes(begin + n) - in_lower_lanes(begin) + p // lanes - first


def _shuffle(
    addresses: NDArray[np.int64], epochs: NDArray[np.int64], n: int, seed: int, layout: Layout
) -> NDArray[np.int64]:
    """P without its random start: blocks are permuted but for a short one, which is the last."""
    size = min(layout.window * layout.block, n)
    windows, place = np.divmod(addresses, size)
    keys = stream(seed, WINDOW, epochs, windows)
    place = place.astype(np.uint64)
    last = windows == n // size  # what is left for a last window, if anything
    place[~last] = permute(place[~last], keys[~last], size)
    if last.any():
        place[last] = permute(place[last], keys[last], n % size)

    blocks, offset = np.divmod(windows * size + place.astype(np.int64), layout.block)
    whole = blocks < n // layout.block
    if whole.any():
        keys = stream(seed, BLOCKS, epochs[whole])
        blocks[whole] = permute(blocks[whole].astype(np.uint64), keys, n // layout.block)
    return blocks * layout.block + offset
