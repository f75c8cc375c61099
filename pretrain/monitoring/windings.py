"""Whether the angles of a torus head turn with the images, measured now and then while a run trains.

Some images of the run's own data are turned by each action once all the way round. An angle that follows its
action goes round `order` times during this turn, and all other angles come back without a turn. The networks
are in evaluation mode, as they will be on the checkpoint. `isotorus eval certificate` measures the same on
images that the run has not seen.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from data_pipeline.dataset.index import Corrupt
from data_pipeline.transforms.actions import turn
from data_pipeline.transforms.augment import normalised
from data_pipeline.transforms.physical import Scales, whole_square
from data_pipeline.transforms.views import center_view
from isotorus.device import to_device
from isotorus.errors import UserError
from pretrain.distributed import rank, sum_together, world_size
from pretrain.engines import Engine
from pretrain.geometry.flat_torus import wrap
from pretrain.geometry.winding import winding
from pretrain.methods.torus import TorusHead
from pretrain.models.batch_norm import GlobalBatchNorm
from pretrain.objectives import draws
from pretrain.objectives.toroidal import angles_from_pairs, torus_uniformity

if TYPE_CHECKING:  # checkpoints hold what monitors have counted, and the configuration imports checkpoints
    from pretrain.config import Config
    from pretrain.preflight.inputs import RunInputs

log = logging.getLogger(__name__)

IMAGES = 32
"""Number of images that are turned, over all ranks."""
SAMPLES = 12
"""Positions along a path for each turn that the action's angle should make."""
RANDOM = 8
"""Number of random turns of each image on which uniformity is measured."""
TOGETHER = 64
"""Images that are encoded at once."""
EARLY = 0.25
"""Share of training before which no winding counts as stuck."""
HARDLY, RISE = 0.5, 0.1
"""A winding is stuck if it is right on less than the share HARDLY of the images, and this share has not risen
by RISE."""


class Windings:
    """Measures a torus head with actions. All ranks make the same calls, because FSDP and ZeRO gather."""

    def __init__(self, config: Config, inputs: RunInputs, engine: Engine) -> None:
        head = engine.networks.head
        assert isinstance(head, TorusHead)
        self.config, self.inputs, self.engine, self.head = config, inputs, engine, head
        self.actions = config.views.actions
        self.share = -(-min(IMAGES, len(inputs.sources)) // world_size())
        """Images of this rank."""
        modules = [*engine.networks.encoder.modules(), *head.projector.modules()]
        self.batch_norms = [m for m in modules if isinstance(m, _BatchNorm | GlobalBatchNorm)]
        self._before: dict[str, float] = {}
        self._said: set[str] = set()

    @torch.no_grad()
    def measure(self, step: int) -> dict[str, float]:
        """Return a part of the row of the log after `step` steps; all ranks call it.

        `windings_right` is the share of images whose angles all wind as they should, `windings_<action>` the
        same while one action turns them. `turned_uniformity_over_null` is U of the angles of images that are
        turned at random, over its null. With batch norm, `batch_norm_gap` is the mean difference in degrees
        between their angles by running statistics and by the statistics of these images. Logs a line about
        each winding that is stuck.
        """
        images, _ = self._images
        right, turns = self._wind(images)
        random = self._random()
        angles = self._angles(images, random)
        measured = {"windings_right": right.all(0).float().mean()}
        for action, of_action in zip(self.actions, right, strict=True):
            measured[f"windings_{action}"] = of_action.float().mean()
        if self.batch_norms:
            gap = wrap(self._angles(images, random, by_batch=True) - angles)
            measured["batch_norm_gap"] = gap.abs().rad2deg().mean()
        sums, turns = sum_together(torch.stack(list(measured.values())), turns)
        row = dict(zip(measured, (sums / world_size()).tolist(), strict=True))
        frequencies, weights = (to_device(x, angles.device) for x in self.head.frequencies(step - 1))
        uniformity = torus_uniformity(angles, frequencies, weights)
        row["turned_uniformity_over_null"] = (uniformity / weights.sum()).item()
        self._warn(step, row, (turns / world_size()).tolist())
        return row

    def _wind(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Turn the images once by each action.

        Returns whether the angles of each image wind as they should (actions, images), and the mean over
        images of how often each action's own angle goes round (actions,).
        """
        right, turns = [], []
        for number, order in enumerate(self.head.orders):
            samples = SAMPLES * order
            path = torch.zeros(samples, len(self.actions))
            path[:, number] = torch.arange(samples) * (2 * math.pi / samples)
            angles = self._angles(images, path.repeat(len(images), 1)).unflatten(0, (-1, samples))
            found = winding(angles, closed=True).number
            wanted = torch.zeros_like(found)
            wanted[:, number] = order
            right.append((found == wanted).all(1))
            turns.append(found[:, number].float().mean())
        return torch.stack(right), torch.stack(turns)

    def _random(self) -> Tensor:
        """Return uniform turns (RANDOM · images, actions) of this rank's images, the same at every step."""
        drawn = draws.draws(self.config.seed, rank(), draws.TURNS)
        turns = drawn.random((RANDOM * self.share, len(self.actions)), dtype=np.float32)
        return 2 * math.pi * torch.from_numpy(turns)

    def _angles(self, images: Tensor, turns: Tensor, by_batch: bool = False) -> Tensor:
        """Return the angles (r · n, m) of images (n, C, S, S), each turned r times by `turns`.

        The networks are in evaluation mode, except for their batch norms if `by_batch` is true.
        """
        device, embeddings, present = images.device, [], self._images[1]
        repeats, together = len(turns) // len(images), len(turns) if by_batch else TOGETHER
        which = torch.arange(len(turns), device=device) // repeats
        with evaluating(self.engine.networks, self.batch_norms if by_batch else []):
            parts = which.split(together), to_device(turns, device).split(together)
            for some, angles in zip(*parts, strict=True):
                turned = turn(images[some], self.actions, angles, self.config.views.border)
                of_some = None if present is None else present[some]
                normal = normalised(turned, self.inputs.mean, self.inputs.std, of_some)
                keys = torch.zeros(1, len(turned), dtype=torch.int64, device=device)
                embeddings.append(self.engine.encode([normal[None]], keys))
            pairs = self.engine.head(torch.cat(embeddings, 1), 0, None).projections[0]
        return angles_from_pairs(pairs.unflatten(-1, (-1, 2)))

    @functools.cached_property
    def _images(self) -> tuple[Tensor, Tensor | None]:
        """Whole images of the run's own data, drawn by its seed, and masks of the channels that each has.

        Images are float (n, C, S, S) in [0, 1], masks (n, C, 1, 1), or None if the channels have no names. An
        image that cannot be read is replaced by another one.
        """
        sources, channels = self.inputs.sources, self.config.data.channel_count
        size = next(r.size for r in self.config.views.resolutions() if r.turned)
        drawn = draws.draws(self.config.seed, 0, draws.TURNED_IMAGES)
        order = drawn.choice(len(sources), min(4 * IMAGES, len(sources)), replace=False)
        square = whole_square(self.config.views)
        found: list[Tensor] = []
        masks: list[Tensor] = []
        error: Exception | None = None
        for index in np.roll(order, -rank() * self.share):
            source = int(np.searchsorted(sources.starts, index, side="right")) - 1
            place = int(index) - sources.starts[source]
            placement = sources.placements[source] if sources.placements else None
            own = placement.own if placement else channels
            try:
                pixels = sources.datasets[source].pixels(place, own, sources.depth)
            except (Corrupt, ValueError) as damage:
                error = damage
                continue
            spacing = square and Scales(sources.datasets[source], square.unit).of(place)
            view = center_view(pixels, size, square, spacing)
            if placement:
                view = placement.spread(view)
                masks.append(placement.mask(self.engine.device))
            found.append(view.float() / (2**sources.depth - 1))
            if len(found) == self.share:
                break
        if not found:
            raise UserError(f"none of {len(order)} images can be read ({error}); pack the images again")
        images, present = (
            torch.stack([each[i % len(each)] for i in range(self.share)]) if each else None
            for each in (found, masks)
        )
        assert images is not None
        return to_device(images, self.engine.device), present

    def _warn(self, step: int, row: dict[str, float], turns: Sequence[float]) -> None:
        """Log a line, once, about each action whose winding is stuck; `turns` are the means over images."""
        share, before, self._before = step / self.config.steps, self._before, row
        if share < EARLY or not self.head.turns or rank() != 0:
            return
        for action, order, mean in zip(self.actions, self.head.orders, turns, strict=True):
            key = f"windings_{action}"
            right, rises = row[key], row[key] >= before.get(key, -1.0) + RISE
            if right >= HARDLY or rises or action in self._said:
                continue
            self._said.add(action)
            log.warning(
                "step %d, %.0f %% of training: the winding of %s is stuck: right on %.0f %% of %d images, "
                "whose angle goes round %.1f times on average instead of %d; start anew with another seed or "
                "encoder (docs/objectives.md, Angles that turn with the image)",
                step, 100 * share, action, 100 * right, self.share * world_size(), mean, order,
            )  # fmt: skip


@contextlib.contextmanager
def evaluating(networks: nn.Module, by_batch: Sequence[nn.Module] = ()) -> Iterator[None]:
    """Put networks into evaluation mode inside this context, all but the batch norms in `by_batch`.

    Those normalise by the batch; at the end, their running statistics are restored.
    """
    networks.eval()
    kept = [(buffer, buffer.clone()) for norm in by_batch for buffer in norm.buffers()]
    for norm in by_batch:
        norm.train()
    try:
        yield
    finally:
        networks.train()
        for buffer, before in kept:
            buffer.copy_(before)
