"""Count the arithmetic of a training step, on the meta device at the real sizes of the views.

Counted are matrix products, convolutions and attention in one forward pass of the real modules, a
multiply-add as 2 FLOPs; everything else is negligible. The backward pass is taken to be 2 × the forward pass,
as usual (it is a little less, because no gradient goes to the pixels). *Model* FLOPs are what the method asks
for: forward, backward and the target network's forward pass. What an engine computes again to save memory
(activation checkpointing, the first pass of exact accumulation) is *executed* but is no model FLOP, so it
never raises the MFU.
"""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pretrain.config import Config
from pretrain.cost.by_depth import by_depth
from pretrain.cost.map_grid import map_grid
from pretrain.cost.remembered import remembered
from pretrain.methods import blank_embeddings, build_head, inputs_beside
from pretrain.methods.config import Grid, ObjectiveConfig, Turned
from pretrain.models.encoder import create_on_meta


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of a training step for one image, i.e. for all its views."""

    encoder_forward: float
    projector_forward: float
    """All MLPs of the head."""
    regularizer_forward: float
    """Matrix products of SIGReg or of covariances. SIGReg's sums of cosines are no matrix products."""
    backward: float
    """2 × the sum of the three above."""
    target_forward: float
    """The target network's encoder on the global views; 0 without a target network."""
    recomputed: float
    """Activation checkpointing: the encoder's forward pass again (full), or hardly anything (selective)."""
    accumulated: float
    """The first pass of exact accumulation, which gathers the embeddings."""

    @property
    def model(self) -> float:
        """FLOPs that the method asks for."""
        forward = self.encoder_forward + self.projector_forward + self.regularizer_forward
        return forward + self.backward + self.target_forward

    @property
    def executed(self) -> float:
        """FLOPs that the devices execute."""
        return self.model + self.recomputed + self.accumulated


def flops_per_image(config: Config, encoder_kwargs: dict[str, Any], embedding_width: int) -> float:
    """Return the model FLOPs of a training step for one image.

    Times images/s, divided by the peak, they are the MFU.
    """
    return step_flops(config, encoder_kwargs, embedding_width).model


def step_flops(config: Config, encoder_kwargs: dict[str, Any], embedding_width: int) -> StepFlops:
    """Return the FLOPs of a training step of this run for one image."""
    resolutions = config.views.resolutions()
    views = sum(r.views for r in resolutions)
    sizes = tuple(r.size for r in resolutions)
    each = _view_forward(config.encoder.name, json.dumps(encoder_kwargs), config.data.channel_count, sizes)
    encoder = sum(r.views * each[r.size] for r in resolutions)
    n_global = config.views.global_views
    objective, turned = config.objective.model_dump_json(), Turned.of(config.views)
    # The side of a mask changes nothing here, because FLOPs are counted of products of matrices only.
    grid = map_grid(config, encoder_kwargs)._replace(side=1)
    mlps, regularizer = _head_forward(objective, embedding_width, n_global, views, turned, grid)
    engine = config.engine
    exact = engine.accumulation > 1 and engine.accumulate == "exact"
    with_target = config.objective.kind == "jepa"
    return StepFlops(
        encoder_forward=encoder,
        projector_forward=mlps,
        regularizer_forward=regularizer,
        backward=2 * (encoder + mlps + regularizer),
        target_forward=n_global * each[resolutions[0].size] if with_target else 0.0,
        recomputed=encoder if engine.activation_checkpointing == "full" else 0.0,
        accumulated=encoder if exact else 0.0,
    )


@remembered
def _view_forward(name: str, kwargs: str, channels: int, sizes: tuple[int, ...]) -> dict[int, float]:
    """Count the encoder on one view of each size; `kwargs` is JSON."""

    def measure(kwargs: dict[str, Any]) -> dict[int, float]:
        encoder = create_on_meta(name, kwargs).eval()
        with torch.device("meta"):
            pixels = {size: torch.empty(1, channels, size, size) for size in sizes}
        return {size: _count(functools.partial(encoder, x)) for size, x in pixels.items()}

    return by_depth(measure, name, json.loads(kwargs), shallow=(1, 2))


@functools.cache
def _head_forward(
    objective: str, width: int, n_global: int, views: int, turned: Turned | None, grid: Grid
) -> tuple[float, float]:
    """Count the head on the embeddings of one image: its MLPs, and everything else. `objective` is JSON."""
    config: ObjectiveConfig = TypeAdapter(ObjectiveConfig).validate_json(objective)
    head = build_head(config, width, n_global, 0, turned)
    images = 8  # some statistics need several images
    beside = inputs_beside(config, n_global, views, images, turned, grid)
    mlps = [0.0]
    for module in head.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda m, x, y: mlps.append(2.0 * m.in_features * y.numel()))
    whole = _count(lambda: head(blank_embeddings(config, views, images, width, grid), 0, *beside))
    return sum(mlps) / images, (whole - sum(mlps)) / images


@torch.no_grad()
def _count(forward: Callable[[], Any]) -> float:
    """Return the FLOPs of a call."""
    with FlopCounterMode(display=False) as counter:
        forward()
    return counter.get_total_flops()
