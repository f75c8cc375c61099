"""The ranges of a healthy run, and what in a run's newest rows lies beyond them.

docs/healthy-run.md has the table, the runs that the ranges were read from, and four runs that are spoiled.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

SOURCE = "docs/healthy-run.md"
NEWEST = 0.1
"""Share of the rows, the newest ones, whose median is compared with the limits, because single steps vary."""
Rows = Sequence[Mapping[str, Any]]


class Range(NamedTuple):
    """The range of a logged quantity in a healthy run, and the limits beyond which it is called unhealthy."""

    label: str
    low: float
    """The values of a healthy run, from `low` to `high`, once its warm-up is over."""
    high: float = math.inf
    least: float = -math.inf
    """A run is unhealthy below `least` and above `most`. Values between these and the range are not
    judged."""
    most: float = math.inf
    remedy: str = ""
    """What to do about an unhealthy run, with the name of the option."""
    percent: bool = False

    @property
    def words(self) -> str:
        """Say the range, such as "1 to 3"."""
        low, high = (self.shown(end) for end in (self.low, self.high))
        return f"{low} or more" if math.isinf(self.high) else f"{low} to {high}"

    def shown(self, value: float) -> str:
        """Return a value in words, in percent where the quantity is a share."""
        return f"{100 * value:.3g}\u00a0%" if self.percent else f"{value:.3g}"


class Finding(NamedTuple):
    """What is unhealthy, and what to do about it."""

    said: str
    remedy: str


_WEIGHT = "raise objective.weight, or lower optimizer.lr if the embeddings collapse"
_WINDINGS = "train longer (steps=N), then try another seed"
_AGREEMENT = Range("agreement of angles", 0.99, 1.0)
RANGES = {
    "sigreg_over_null": Range("SIGReg over null", 1.0, 3.0, most=10.0, remedy=_WEIGHT),
    "uniformity_over_null": Range("U over null", 0.2, 2.5, most=10.0, remedy="raise objective.weight"),
    "effective_rank": Range("effective rank", 1.5, least=1.5, remedy=_WEIGHT),
    "std_median": Range("median deviation", 0.1, least=0.01, remedy=_WEIGHT),
    "windings_right": Range("windings right", 0.9, 1.0, least=0.5, remedy=_WINDINGS, percent=True),
    "data_wait": Range("waiting for data", 0.0, 0.1, most=0.1, remedy="raise data.workers", percent=True),
}
"""Ranges by name in metrics.jsonl; `pretrain.monitoring` warns at the limits of collapse and data wait."""
REFUSED = 0.02
"""Share of refused updates above which a run is unhealthy."""


def range_of(key: str) -> Range | None:
    """Return the range of a logged quantity; None where no range is known."""
    if key.startswith("agreement_") and key != "agreement_chance":
        return _AGREEMENT
    return RANGES.get(key)


def newest(rows: Rows, key: str) -> float | None:
    """Return the median of a quantity over the newest tenth of the rows that have it; None without any."""
    values = [float(row[key]) for row in rows if key in row]
    return statistics.median(values[-max(1, round(NEWEST * len(values))) :]) if values else None


def judged(rows: Rows) -> tuple[int, list[Finding]]:
    """Return how many quantities of a log have limits, and what lies beyond them."""
    found, count = [], 0
    for key, of in RANGES.items():
        if (value := newest(rows, key)) is None:
            continue
        count += 1
        if not of.least <= value <= of.most:
            found.append(Finding(f"{of.label} {of.shown(value)} (healthy: {of.words})", of.remedy))
    last = rows[-1] if rows else {}
    if "skipped_steps" in last and last.get("step"):
        count += 1
        share = last["skipped_steps"] / last["step"]
        if share > REFUSED:
            found.append(
                Finding(f"{100 * share:.1f}\u00a0% of the updates were refused", "lower optimizer.lr")
            )
    return count, found
