"""A shuffled order in which every rank reads its own stretches of the shards, one after another.

With a uniform permutation every read is random. Here the index of a sample within its epoch is
P(T(position)), where T determines which rank reads which part of the epoch and P shuffles. Neither depends on
the number of ranks, and both are exact permutations of [0, n) in closed form.

T is a transposition. The columns of a global batch are divided into `lanes` groups of equal width, and a rank
takes the same columns of every batch (`order.Order`). Lane l uses the positions p with p mod `lanes` = l; T
puts these next to each other, so that a lane, and with it a rank, walks through contiguous addresses.

P shuffles blocks and windows. `block` consecutive samples form a block: rows of the index are sorted by shard
and offset, so a block is one byte range, or two where a shard ends. The blocks are permuted; then every
`window` consecutive blocks form a window, whose samples are permuted among each other. Blocks are counted
from a random first sample, so that their borders differ between epochs; the last block of an epoch is
shorter.

At any time each lane reads inside one window. A rank that caches what it has read of two windows per lane
therefore reads every byte of its share about once, in whole blocks.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.order.permutation import BLOCKS, START, WINDOW, permute, stream

_LANES = 64
_SAMPLES_PER_LANE = 16
_BLOCK_BYTES = 32 * 2**20
_BLOCKS_A_WINDOW = 4
_OPEN_BLOCKS = 256


@dataclass(frozen=True)
class Layout:
    """The sizes that define a windowed order."""

    lanes: int
    """Number of stretches that an epoch is divided into; they are read in parallel."""
    block: int
    """Number of consecutive samples that are read together."""
    window: int
    """Number of blocks whose samples are shuffled among each other."""


def lanes_for(batch_size: int) -> int:
    """Return the number of lanes for a global batch size: the largest divisor of it up to a limit.

    The limit is 64, or one lane for 16 samples if that is more. So 64 ranks with 16 images each have one lane
    each, and 512 ranks with 64 images have four. If there are more ranks than lanes, ranks share a lane and
    read the same blocks.
    """
    most = max(_LANES, batch_size // _SAMPLES_PER_LANE)
    return next(lanes for lanes in range(min(most, batch_size), 0, -1) if batch_size % lanes == 0)


def layout_for(lanes: int, n: int, bytes: int, share: float = 1.0) -> Layout:
    """Return the layout for a source of `n` samples with `bytes` in all, and a `share` in (0, 1] of every
    batch.

    Blocks have about 32 MiB, so that the cost of starting a read is small. A window has 4 blocks, or more so
    that at least 256 blocks are open in all lanes together (8 GiB in the caches of all ranks) and mix in a
    batch; for a source with a share below 1 both numbers are multiplied by the share.

    A source of at most 256 · share blocks is a single window, so its order is a uniform permutation: the
    caches can hold all of it, and windows would only reduce the mixing.
    """
    assert lanes >= 1 and n >= 1 and bytes >= 0 and 0 < share <= 1, (lanes, n, bytes, share)
    block = min(max(_BLOCK_BYTES * n // max(bytes, 1), 1), n)
    blocks = -(-n // block)
    if blocks <= _OPEN_BLOCKS * share:
        return Layout(lanes, block, blocks)
    return Layout(lanes, block, math.ceil(max(_BLOCKS_A_WINDOW, _OPEN_BLOCKS / lanes) * share))


def windowed_index(position: NDArray[np.int64] | int, n: int, seed: int, layout: Layout) -> NDArray[np.int64]:
    """Return the sample at each position p of the run; p // n is its epoch and p % lanes its lane.

    `position` is a non-negative int64 array of any shape; the result has the same shape and values in [0, n).
    `n` may be up to 2**40.
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
    """Apply T: return the address in [0, n) of position p in the epoch whose positions are [begin, begin +
    n).
    """
    lane = p % lanes

    def in_lower_lanes(end: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many positions below `end` are in lanes before that of p."""
        return end // lanes * lane + np.minimum(end % lanes, lane)

    first = (begin - lane + lanes - 1) // lanes  # number of the lane's positions before the epoch
    return in_lower_lanes(begin + n) - in_lower_lanes(begin) + p // lanes - first


def _shuffle(
    addresses: NDArray[np.int64], epochs: NDArray[np.int64], n: int, seed: int, layout: Layout
) -> NDArray[np.int64]:
    """Apply P without its random first sample: shuffle samples within windows, then permute the blocks.

    A shorter last block keeps its place.
    """
    size = min(layout.window * layout.block, n)
    windows, place = np.divmod(addresses, size)
    keys = stream(seed, WINDOW, epochs, windows)
    place = place.astype(np.uint64)
    last = windows == n // size  # the last window, which is shorter, if there is one
    place[~last] = permute(place[~last], keys[~last], size)
    if last.any():
        place[last] = permute(place[last], keys[last], n % size)

    blocks, offset = np.divmod(windows * size + place.astype(np.int64), layout.block)
    whole = blocks < n // layout.block
    if whole.any():
        keys = stream(seed, BLOCKS, epochs[whole])
        blocks[whole] = permute(blocks[whole].astype(np.uint64), keys, n // layout.block)
    return blocks * layout.block + offset
