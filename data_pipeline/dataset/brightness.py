"""Lines of `pack` and `index` about the brightness of a data set, which show whether its rule fits."""

from collections.abc import Mapping, Sequence

from data_pipeline.dataset.index import Dataset

FLAT = 0.02
"""Standard deviation of brightness below which the rule hardly fits the values; white is 1."""

_DARK = 0.1
"""Mean brightness below which images are called dark; white is 1."""


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


def dark_line(sets: Sequence[Dataset]) -> str:
    """Return a line about 16-bit images that are nearly black, as 12-bit numbers in 16 bits are; "" for
    others.
    """
    described = [dataset.description for dataset in sets]
    brightest = max(mean for each in described for mean in each.mean)
    dark = brightest < _DARK and all(each.sixteen_bit == each.count for each in described)
    if not dark or described[0].intensity.is_stated:
        return ""
    return (
        f"\nnote: these images use little of their range (mean {brightest:.1%} of white), as raw numbers "
        "do; to say what is black and white, pack into another folder with --intensity percentile:0.5,99.5 "
        "or window:LOW,HIGH"
    )
