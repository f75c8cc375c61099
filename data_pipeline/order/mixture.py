"""A mixture of sources as a pure function: global position → (source, position in that source).

Time is cut into periods of 2**14 positions, and in each of them source k has exactly m_k slots: its
share of the weights, rounded by largest remainders. Its j-th slot of a period falls at the time
(j + u) / m_k, u uniform in [0, 1), and all slots in the order of their times are the period. So the
sources of any stretch of positions are nearly in proportion, with no fixed pattern, and the number of
slots that source k had before a position is known without walking there.

In a windowed order every lane is such a sequence, so that a source's lanes stay with their ranks. All
go through the same periods but begin at other places there: then a batch, which is a piece of every
lane, has proportions that vary no more than by independent draws, and less the longer the pieces.
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
_TABLES = 16
_AHEAD = 10_133  # a prime near the golden section of a period: lanes begin evenly spread, out of step


class Mixture:
    """K sources in proportion to their weights, in one or several lanes.

    Raises `UserError` if the weights sum to zero, if one is negative or not finite, or if one is too
    small for a slot in a period.
    """

    def __init__(self, weights: Sequence[float], seed: int, lanes: int = 1) -> None:
        self.slots = _apportion(weights)
        """Positions of each source in every period (K,); they sum to `PERIOD`."""
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
        """The source of each place in its lane, and which of that source's positions it is.

        A source's positions are 0, 1, 2, … in the order of places; with several lanes, lane l has those
        that are l modulo their number, in that order. Arrays are not negative and of one shape, which
        the results share. Fast where the places fall into few periods, as those of a batch do.
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
    """(2, PERIOD): the source of every position in a period, and which of that source's slots it is."""
    counts = np.array(slots)
    source = np.repeat(np.arange(len(slots)), counts)
    turn = np.arange(PERIOD) - (np.cumsum(counts) - counts)[source]
    words = stream(seed, MIXTURE, period, np.arange(PERIOD))
    u = (words >> np.uint64(32)).astype(np.float64) / 2**32  # turn + u is exact
    table = np.stack([source, turn])[:, np.argsort((turn + u) / counts[source], kind="stable")]
    table.flags.writeable = False  # as it is shared
    return table


def _apportion(weights: Sequence[float]) -> tuple[int, ...]:
    """`PERIOD` slots shared out by largest remainders (Hamilton's method), exactly; ties to the first."""
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
