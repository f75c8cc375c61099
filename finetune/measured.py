"""What was measured for a comparison."""

from typing import Any, NamedTuple

from eval_suite.usefulness.estimate import Estimates


class Measured(NamedTuple):
    """The scores of networks and baselines on the same images."""

    scores: dict[str, dict[str, Any]]
    """Scores with intervals, by the name of the network or baseline."""
    estimates: dict[str, Estimates]
    """The estimates of the scores, for differences."""
    names: list[str]
    """Names of the classes or columns."""
    labelled: dict[str, int]
    """Number of images with a target that were used of each split."""
    examples: list[dict[str, Any]] = []
    """Images that the page shows, see `masks.examples`."""
