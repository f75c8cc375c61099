"""Shares and quantiles with their 95 % intervals, ready for JSON."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_suite.geometry.error_rates import interval
from isotorus.randomness import generator

RESAMPLES = 1_000
"""Number of bootstrap samples behind an interval."""
BOUNDS = (2.5, 97.5)
"""Percentiles of the bootstrap samples that bound an interval."""


def share(name: str, hits: NDArray[np.bool_]) -> dict[str, Any]:
    """Return the share of the images (n,) that are hits, under `name`, with its Clopper-Pearson interval.

    Both are None for no images.
    """
    count = len(hits)
    if not count:
        return {name: None, f"{name}_interval": None}
    return {name: float(hits.mean()), f"{name}_interval": list(interval(int(hits.sum()), count))}


def quantiles(
    names: Sequence[str], values: NDArray[np.floating], q: Sequence[float], seed: int
) -> dict[str, Any]:
    """Return quantiles `q` of the values (n,) of n images, under `names`, with bootstrap intervals."""
    drawn = generator(seed).integers(len(values), size=(RESAMPLES, len(values)))
    found = np.quantile(values, q)
    low, high = np.percentile(np.quantile(values[drawn], q, axis=1), BOUNDS, axis=1)
    entries: dict[str, Any] = {}
    for place, name in enumerate(names):
        entries[name] = float(found[place])
        entries[f"{name}_interval"] = [float(low[place]), float(high[place])]
    return entries
