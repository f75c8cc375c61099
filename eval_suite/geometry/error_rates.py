"""How often a verdict was right and wrong on known spaces, at the calibrated setting nearest to a cloud's.

The counts are those of the table in docs/verdict.md. benchmarks/calibration.py writes both.
"""

import json
from functools import cache
from math import log
from pathlib import Path
from typing import Any, NamedTuple

from scipy.stats import beta

FILE = Path(__file__).with_name("error_rates.json")
SPACES = {
    "flat torus T²": ("flat torus",),
    "rectangular flat torus T²": ("flat torus 3:2", "flat torus 2:1", "flat torus 3:1"),
    "circle": ("circle",),
    "sphere": ("sphere",),
    "isotropic Gaussian": ("Gaussian",),
}
"""The spaces that each verdict names, as `known_spaces.SPACES` calls them."""
SAMPLES_FACTOR = 1.6
"""A calibrated number of samples is near one that is up to this factor smaller or larger."""
WIDTH_FACTOR = 4.0
"""The same for the number of features."""


class ErrorRate(NamedTuple):
    """Counts of one verdict at one calibrated setting, over several amounts of noise."""

    name: str
    """The verdict."""
    samples: int
    """Number of samples of each cloud."""
    width: int
    """Number of features of each cloud."""
    found: int
    """Clouds of the shape that were recognised."""
    draws: int
    """Clouds of the shape."""
    wrong: int
    """Clouds of other spaces that were mistaken for the shape."""
    others: int
    """Clouds of other spaces."""

    def to_json(self) -> dict[str, Any]:
        """Return the counts with the 95 % intervals of both rates."""
        return self._asdict() | {
            "found_interval": interval(self.found, self.draws),
            "wrong_interval": interval(self.wrong, self.others),
        }


def nearest(name: str, samples: int, width: int) -> ErrorRate | None:
    """Return the error rate of the verdict `name` at the calibrated setting nearest to these numbers.

    None if no calibrated setting is near, by `SAMPLES_FACTOR` and `WIDTH_FACTOR`. The noise of a cloud is not
    known, so the counts are those of all calibrated amounts of noise together.
    """

    def away(rate: ErrorRate) -> tuple[float, float]:
        return abs(log(rate.samples / samples)), abs(log(rate.width / width))

    near = [
        rate
        for rate in calibrated()
        if rate.name == name
        and rate.draws
        and away(rate)[0] <= log(SAMPLES_FACTOR)
        and away(rate)[1] <= log(WIDTH_FACTOR)
    ]
    return min(near, key=lambda rate: sum(away(rate)), default=None)


@cache
def calibrated() -> tuple[ErrorRate, ...]:
    """Return the error rates of all verdicts at all calibrated settings."""
    return tuple(ErrorRate(**row) for row in json.loads(FILE.read_text("utf-8")))


def write(rates: list[ErrorRate]) -> None:
    """Replace the error rates that are kept with the code."""
    lines = ",\n".join(json.dumps(rate._asdict(), ensure_ascii=False) for rate in rates)
    FILE.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def interval(hits: int, draws: int) -> tuple[float, float]:
    """Return the 95 % interval of the probability behind `hits` in `draws` (Clopper & Pearson 1934)."""
    low = float(beta.ppf(0.025, hits, draws - hits + 1)) if hits else 0.0
    high = float(beta.ppf(0.975, hits + 1, draws - hits)) if hits < draws else 1.0
    return low, high
