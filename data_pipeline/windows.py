"""The two-level order: shuffled, and yet every rank reads its own stretches of the shards, one by one.

A uniform permutation makes every read a random one. Here index = P(T(position)) within each epoch,
where T decides which part of the epoch is whose and P what lies there. Neither knows the number of
ranks, and both are exact permutations of [0, n) in closed form.

T, a transposition. Global batches are rows of `stripe` positions; `lanes` columns, each stripe/lanes
positions wide, are laid end to end. A rank takes the same contiguous share of every batch, so it walks
few lanes, and a lane is a contiguous stretch of addresses. Lanes keep their columns when an epoch
begins in the middle of a batch.

P, a shuffle by blocks and windows. `block` consecutive samples are a block: index rows are in the
order of shards and offsets, so it is one byte range, or two at the end of a shard. Blocks are permuted,
and `window` of them in a row are a window, whose samples are permuted among each other. Blocks are
counted from a random sample on, so that they begin elsewhere each epoch, and the short one at the end
holds anything.

At any time each lane reads inside one window. So a rank that keeps what it has read of two windows a
lane reads every byte of its share about once, in whole blocks.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.permutation import BLOCKS, START, WINDOW, permute, stream

_BLOCK_BYTES = 32 * 2**20
_OPEN_BLOCKS = 256
_LANES = 64
_POSITIONS_A_LANE = 16
_BLOCKS_A_WINDOW = 4


@dataclass(frozen=True)
class Layout:
    """The sizes of a two-level order; part of what a run's order depends on."""

    stripe: int
    """Positions a row of the transposition: the global batch."""
    lanes: int
    """Columns that a row is divided into; divides `stripe`. A multiple of the ranks is best."""
    block: int
    """Consecutive samples that are read together."""
    window: int
    """Blocks whose samples are shuffled among each other."""


def layout_for(batch_size: int, n: int, bytes: int) -> Layout:
    """The layout for global batches of `batch_size` out of `n` samples that take `bytes` in all.

    Blocks are of about 32 MiB, long enough that opening one costs little. Lanes are the most that
    divide the batch, up to 64 or, in batches above 1024, one for 16 of its samples: so 512 ranks of 64
    images have four each. A window has 4 blocks, or more so that lanes · window is at least 256. That
    many blocks are open at once and mix in a batch: no more than it has samples, if those are 256.

    A set of up to 256 blocks (8 GiB) is one window, so its order is a uniform permutation: any cache
    holds it whole, and mixing by blocks would only cost variety.
    """
    assert batch_size >= 1 and n >= 1 and bytes >= 0, (batch_size, n, bytes)
    most = max(_LANES, batch_size // _POSITIONS_A_LANE)
    lanes = next(lanes for lanes in range(min(most, batch_size), 0, -1) if batch_size % lanes == 0)
    block = min(max(_BLOCK_BYTES * n // max(bytes, 1), 1), n)
    blocks = -(-n // block)
    window = blocks if blocks <= _OPEN_BLOCKS else max(_BLOCKS_A_WINDOW, -(-_OPEN_BLOCKS // lanes))
    return Layout(batch_size, lanes, block, window)


def windowed_index(position: NDArray[np.int64] | int, n: int, seed: int, layout: Layout) -> NDArray[np.int64]:
    """The sample that position p of the run consumes, p // n being its epoch.

    `position` is a non-negative int64 array of any shape; the result has the same shape, with values
    in [0, n). `n` may be as large as 2**40.
    """
    assert 1 <= n <= 2**40, n
    assert layout.stripe % layout.lanes == 0 and layout.block >= 1 and layout.window >= 1, layout
    positions = np.asarray(position, dtype=np.int64)
    p = positions.reshape(-1)
    epochs = p // n
    addresses = _transpose(p, epochs * n, n, layout)
    start = (stream(seed, START, epochs) % np.uint64(n)).astype(np.int64)
    index = (_shuffle(addresses, epochs, n, seed, layout) + start) % n
    return index.reshape(positions.shape)


def _transpose(p: NDArray[np.int64], begin: NDArray[np.int64], n: int, layout: Layout) -> NDArray[np.int64]:
    """T: the address in [0, n) of position p in the epoch of the positions [begin, begin + n)."""
    width = layout.stripe // layout.lanes

    def before(x: NDArray[np.int64], column: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many positions below x are in the columns below `column`."""
        rows, rest = np.divmod(x, layout.stripe)
        return rows * column + np.minimum(rest, column)

    left = p % layout.stripe // width * width  # the lane's first column
    lane = before(begin + n, left) - before(begin, left)  # the lane's first address
    right = left + width
    return lane + (before(p, right) - before(p, left)) - (before(begin, right) - before(begin, left))


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
