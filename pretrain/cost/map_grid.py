"""The size of the map that masks are predicted from, found out without computing."""

import functools
import json
from typing import Any

import torch

from pretrain.config import Config
from pretrain.methods.config import ONE_CELL, Grid, reads_masks
from pretrain.models.encoder import create_on_meta
from pretrain.models.repeated import with_few_blocks


def map_grid(config: Config, encoder_kwargs: dict[str, Any]) -> Grid:
    """Return the sizes of the map and the masks of a run's views; one cell for a run without masks."""
    if not reads_masks(config.objective):
        return ONE_CELL
    side, few = config.views.global_size, with_few_blocks(config.encoder.name, encoder_kwargs)
    return Grid(*_cells(config.encoder.name, json.dumps(few), config.data.channel_count, side), side)


@functools.cache
def _cells(name: str, kwargs: str, channels: int, side: int) -> tuple[int, int]:
    """Return height and width of the map of an image of side² pixels; `kwargs` is JSON."""
    encoder = create_on_meta(name, json.loads(kwargs)).eval()
    with torch.no_grad():
        shape = encoder(torch.empty(1, channels, side, side, device="meta")).shape
    return shape[1], shape[2]
