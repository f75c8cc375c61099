"""The choice among candidate settings: val chooses, and test is predicted for the chosen one alone."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
FeatureSets = Array | Mapping[str, Array]
"""Features (n, d), or several sets of them of the same n samples, by name."""

_Value = TypeVar("_Value")


class Unmeasurable(ValueError):
    """What the data lack for a method to make sense, in words for a report."""


class Candidate(NamedTuple):
    """One setting, what it predicts for val, and how to get what it predicts for test."""

    setting: dict[str, Any]
    val: NDArray[np.floating]
    test: Callable[[], NDArray[np.floating]]


def choose(
    candidates: Iterable[Candidate],
    val_y: NDArray[Any],
    quality: Callable[[NDArray[Any], NDArray[np.floating]], dict[str, float]],
) -> tuple[dict[str, Any], NDArray[np.floating], list[dict[str, Any]]]:
    """The setting of the best candidate, its predictions for test, and setting and quality of each one.

    `quality` of (val_y, predictions) is compared entry by entry in its own order, nan below everything;
    of equals the later candidate is taken.
    """
    rows: list[dict[str, Any]] = []
    best: Candidate | None = None
    best_key: tuple[float, ...] = ()
    for candidate in candidates:
        found = quality(val_y, candidate.val)
        rows.append({**candidate.setting, **found})
        key = tuple(-np.inf if np.isnan(value) else value for value in found.values())
        if best is None or key >= best_key:
            best, best_key = candidate, key
    assert best is not None
    return best.setting, best.test(), rows


def named(x: _Value | Mapping[str, _Value]) -> Mapping[str, _Value]:
    """The feature sets by name; a single one has the name ''."""
    return x if isinstance(x, Mapping) else {"": x}


def label(feature_set: str) -> dict[str, str]:
    """What a setting says of its feature set: nothing where there is only one without a name."""
    return {"feature_set": feature_set} if feature_set else {}
