"""The page of `eval duplicates`: the nearest pairs side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipeline.dataset.index import Dataset
from eval_suite.features import embed
from eval_suite.features.images import unit_range
from eval_suite.report.pages import template
from eval_suite.torus_head.winding_page import picture

SHOWN, SIZE = 60, 96
"""Largest number of pairs that are shown; side of a thumbnail in pixels."""


def render(
    found: Mapping[str, Any],
    pairs: Sequence[tuple[int, int, float]],
    datasets: Sequence[Dataset],
    channels: int,
) -> str:
    """Return the page for pairs of rows and their degrees, the nearest first.

    `found` has what the page says: `name`, `step`, `sentence` and `warning`. Rows count through all
    `datasets`, and `channels` is how many the encoder sees.
    """
    starts = np.cumsum([0, *(len(data) for data in datasets)])

    def shown(row: int) -> dict[str, str]:
        which = int(np.searchsorted(starts, row, side="right")) - 1
        data, sample = datasets[which], int(row - starts[which])
        image = unit_range(embed.read_views(data, sample, channels, [SIZE])[0])
        return {"uri": picture(image, SIZE), "data": str(data.path), "key": str(data.key(sample))}

    nearest = [
        {"images": [shown(first), shown(second)], "degrees": degrees}
        for first, second, degrees in pairs[:SHOWN]
    ]
    return template("duplicates").render(
        found=found, pairs=nearest, count=len(pairs), several=len(datasets) > 1
    )
