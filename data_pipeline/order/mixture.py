"""Mix several sources by weight, as a pure function: global position → (source, position in that source).

Positions are divided into periods of 2**14, and in each period source k has exactly m_k slots: its share of
the weights, rounded by largest remainders. The j-th slot of source k in a period has the time (j + u) / m_k
with u uniform in [0, 1), and sorting all slots by time gives the order within the period. So every stretch of
positions contains the sources nearly in proportion, without a fixed pattern, and the number of slots that a
source has before any position is known without counting.

In a windowed order there are several lanes, and each lane is such a sequence; a source's samples then stay
with the ranks that read the lane. All lanes use the same periods but start at different offsets in them. A
batch, which takes a piece of every lane, then has proportions that vary at most as much as for independent
draws, and less the longer the pieces are.
"""

import functools
from collections.abc import Sequence
from fractions import Fraction
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from data_pipeline.order.permutation import MIXTURE, stream
from isotorus.errors import UserError

PERIOD = 2**14
"""Positions in a period."""
_TABLES = 16  # periods whose tables are kept in memory
_AHEAD = 10_133  # a prime near PERIOD / golden ratio, which spreads the lanes' offsets evenly


class Mixture:
    """K sources in proportion to their weights, in one or several lanes.

    Raises `UserError` if the weights sum to zero, or if a weight is negative, not finite, or too small for
    one slot in a period.
    """

    def __init__(self, weights: Sequence[float], seed: int, lanes: int = 1) -> None:
        self.slots = _apportion(weights)
        """Slots of each source in every period (K,); they sum to `PERIOD`."""
        self._seed = seed
        self._lanes = lanes
        if len(self.slots) > 1:
            ahead = _AHEAD * np.arange(lanes) % PERIOD
            source, _ = _period(self.slots, seed, 0)
            slots = [np.flatnonzero(source == k) for k in range(len(self.slots))]
            self._ahead, self._before = ahead, np.array([np.searchsorted(at, ahead) for at in slots])

    def locate(
        self, places: NDArray[np.int64], lane: NDArray[np.int64] | int = 0
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the source of each position `places` of its lane, and the position within that source.

        Both arrays have the shape of `places`, which are not negative; `lane` is a number or has the same
        shape. Each source uses its positions 0, 1, 2, … in order; with L lanes, lane l uses the positions p
        with p mod L = l. The computation is fast if the places fall into few periods, as in a batch.
        """
        if len(self.slots) == 1:
            return np.zeros_like(places), places * self._lanes + lane
        periods, slot = np.divmod(places + self._ahead[lane], PERIOD)
        distinct, which = np.unique(periods, return_inverse=True)
        tables = np.stack([_period(self.slots, self._seed, int(period)) for period in distinct])
        source, turn = np.moveaxis(tables[which.reshape(slot.shape), :, slot], -1, 0)
        turn = periods * np.array(self.slots)[source] + turn - self._before[source, lane]
        return source, turn * self._lanes + lane


@functools.lru_cache(_TABLES)
def _period(slots: tuple[int, ...], seed: int, period: int) -> NDArray[np.int64]:
    """Return an array (2, PERIOD): the source of every position of a period, and the number of its slot."""
    counts = np.array(slots)
    source = np.repeat(np.arange(len(slots)), counts)
    turn = np.arange(PERIOD) - (np.cumsum(counts) - counts)[source]
    words = stream(seed, MIXTURE, period, np.arange(PERIOD))
    u = (words >> np.uint64(32)).astype(np.float64) / 2**32  # exact in float64, also after adding turn
    table = np.stack([source, turn])[:, np.argsort((turn + u) / counts[source], kind="stable")]
    table.flags.writeable = False  # the cache returns the same array to every caller
    return table


def _apportion(weights: Sequence[float]) -> tuple[int, ...]:
    """Divide `PERIOD` slots by weight with the largest-remainder (Hamilton) method, in exact arithmetic.

    If remainders are equal, the first source gets the slot. Raises `UserError` as `Mixture` does.
    """
    for number, weight in enumerate(weights):
        if not isfinite(weight) or weight < 0:
            raise UserError(f"data.sources.{number}.weight is {weight}; give a finite number above 0")
    exact = [Fraction(weight) for weight in weights]
    total = sum(exact)
    if total == 0:
        raise UserError(f"the weights of data.sources are {list(weights)}; give numbers above 0")
    quotas = [weight * PERIOD / total for weight in exact]
    slots = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(slots)), key=lambda k: slots[k] - quotas[k])
    for k in by_remainder[: PERIOD - sum(slots)]:
        slots[k] += 1
    if 0 in slots:
        k = slots.index(0)
        raise UserError(
            f"data.sources.{k}.weight is {weights[k]}, a share of {float(exact[k] / total):.2g}; "
            f"give it at least 1/{PERIOD} of the sum of all weights or leave the source out"
        )
    return tuple(slots)
