"""The line of `pack` and `index` about the brightness of a data set, which shows whether its rule fits."""

from collections.abc import Mapping

from data_pipeline.dataset.index import Dataset

FLAT = 0.02
"""Standard deviation of brightness below which the rule hardly fits the values; white is 1."""


def lines(sets: Mapping[str, Dataset]) -> list[str]:
    """Return a line for each set whose numbers become brightness by a rule. Sets are given by their names, ""
    without a split.
    """
    return [
        f"  {name + ': ' if name else ''}{_brightness(dataset)}"
        for name, dataset in sets.items()
        if dataset.intensity.is_stated
    ]


def _brightness(dataset: Dataset) -> str:
    """Say how bright the images of a set are, and how much they vary."""
    mean, std = (sum(each) / dataset.channels for each in (dataset.mean, dataset.std))
    said = f"brightness by {dataset.intensity}: mean {mean:.3f}, standard deviation {std:.3f}"
    if max(dataset.std) >= FLAT:
        return said
    return f"{said}; that is nearly one brightness: compare the rule with the values in the files"
