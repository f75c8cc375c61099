"""k-NN and RankMe on images that the run does not train on, measured now and then while it trains.

The ranks encode the images, by the networks in evaluation mode; what follows from the embeddings is computed
on the CPU by the recorder's thread, while training goes on. Images are drawn by the seed, and encoded in
groups that do not depend on the number of ranks. So a run that continues logs the same values, on any number
of ranks.
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.dataset.channel_names import placed
from data_pipeline.dataset.index import Corrupt, Dataset
from data_pipeline.transforms.augment import normalised
from data_pipeline.transforms.physical import Scales, whole_square
from data_pipeline.transforms.views import center_view
from isotorus.device import to_device
from isotorus.errors import UserError
from pretrain.distributed import rank, sum_together, world_size
from pretrain.engines import Engine
from pretrain.monitoring.windings import evaluating
from pretrain.objectives import draws

if TYPE_CHECKING:  # pretrain.config imports this room
    from pretrain.config import Config
    from pretrain.preflight.inputs import RunInputs

log = logging.getLogger(__name__)

GROUP = 32
"""Images that are encoded at once, all by one rank."""
NEIGHBOURS, TEMPERATURE = 20, 0.07
"""Settings of the k-NN of `isotorus eval`: a neighbour's vote is e^(cosine / TEMPERATURE)."""


class Embedded(NamedTuple):
    """The embeddings of the held-out images on the CPU, in the order of the data set."""

    embeddings: Tensor
    """(n, D) float32."""
    labels: Tensor
    """(n,) int64; -1 without a label."""


class HeldOut:
    """Encodes the held-out images; all ranks make the same calls, because FSDP and ZeRO gather."""

    def __init__(self, config: Config, inputs: RunInputs, dataset: Dataset, engine: Engine) -> None:
        self.config, self.inputs, self.dataset, self.engine = config, inputs, dataset, engine
        count = min(config.held_out.images, len(dataset))
        drawn = draws.draws(config.seed, 0, draws.HELD_OUT)
        self.samples: NDArray[np.int64] = np.sort(drawn.choice(len(dataset), count, replace=False))
        groups = [self.samples[first : first + GROUP] for first in range(0, count, GROUP)]
        self.rounds = -(-len(groups) // world_size())
        """Number of groups of each rank; a rank with fewer groups encodes its last one again, which does not
        count."""
        self.groups = groups
        names = inputs.sources.channel_names
        self.placement = None if names is None else placed(dataset, names)
        """The positions of the images' channels among those of the encoder; None if these have no names."""

    def due(self, step: int) -> bool:
        """Return whether the row of the log at a step has the measurement; this depends on the step alone."""
        every, rows = self.config.held_out.every, self.config.log_every
        before = (step - 1) // rows * rows
        return step == self.config.steps or step // every > before // every

    @torch.no_grad()
    def embed(self) -> Embedded:
        """Return the embeddings on every rank; all ranks call it. Images that cannot be read are left out."""
        width, device = self.inputs.embedding_width, self.engine.device
        found = torch.zeros(len(self.groups), GROUP, width, device=device)
        read = torch.zeros(len(self.groups), GROUP, device=device)
        present = None if self.placement is None else self.placement.mask(device)
        most = 2**self.inputs.sources.depth - 1
        with evaluating(self.engine.networks):
            for number in range(self.rounds):
                group = number * world_size() + rank()
                pixels, sound = self._images[min(number, len(self._images) - 1)]
                images = to_device(pixels, device).float() / most
                images = normalised(images, self.inputs.mean, self.inputs.std, present)
                keys = torch.zeros(1, len(images), dtype=torch.int64, device=device)
                embedded = self.engine.encode([images[None]], keys)[0].float()
                if group < len(self.groups):
                    found[group, : len(sound)] = embedded
                    read[group, : len(sound)] = to_device(sound, device)
        # Each group is on one rank and zero on the others, so the sum is exact.
        found, read = sum_together(found, read)
        kept = read.flatten().bool().cpu()
        labels = torch.full((len(kept),), -1)
        labels[: len(self.samples)] = torch.from_numpy(self.dataset.labels[self.samples].astype(np.int64))
        return Embedded(found.flatten(0, 1).cpu()[kept], labels[kept])

    @functools.cached_property
    def _images(self) -> list[tuple[Tensor, Tensor]]:
        """This rank's groups: images (g, C, S, S) of 8 or 16 bits, and which of them could be read (g,).

        A rank without a group gets the first one. Raises UserError if no image of the rank can be read.
        """
        mine = self.groups[rank() :: world_size()] or self.groups[:1]
        read = [self._read(group) for group in mine]
        if not any(bool(sound.any()) for _, sound in read):
            raise UserError(
                f"held_out.path={self.dataset.path}: none of its images can be read; pack them again"
            )
        return read

    def _read(self, group: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Read a group; an image that cannot be read is black, and marked."""
        config, depth = self.config, self.inputs.sources.depth
        size = config.views.whole_side
        placement, sound = self.placement, torch.ones(len(group))
        channels = placement.own if placement else config.data.channel_count
        square = whole_square(config.views)
        scales = Scales(self.dataset, square.unit) if square else None
        images: list[Tensor] = []
        for place, sample in enumerate(group.tolist()):
            try:
                pixels = self.dataset.pixels(sample, channels, depth)
                images.append(center_view(pixels, size, square, scales.of(sample) if scales else None))
            except (Corrupt, ValueError) as error:
                log.warning("held-out image %d is left out: %s", sample, error)
                sound[place] = 0
                images.append(torch.zeros(channels, size, size, dtype=torch.uint8))
        kind = next((x.dtype for x, ok in zip(images, sound, strict=True) if ok), torch.uint8)
        read = torch.stack([x.to(kind) for x in images])
        return placement.spread(read) if placement else read, sound


def conclude(embedded: Embedded) -> dict[str, float]:
    """Return the part of a log row that follows from embeddings; the recorder's thread calls it.

    `held_out_rankme` is exp of the entropy of the embeddings' singular values (Garrido et al. 2023).
    `held_out_knn` is the balanced accuracy of k-NN by cosine, each labelled image predicted by the others; it
    is left out with fewer than two classes. Embeddings that are not finite give an empty dict.
    """
    x, labels = embedded
    if len(x) < 2 or not x.isfinite().all():
        return {}
    values = torch.linalg.svdvals(x.double())
    row = {"held_out_rankme": float(torch.special.entr(values / values.sum().clamp(min=1e-300)).sum().exp())}
    known = labels >= 0
    if len(labels[known].unique()) > 1:
        row["held_out_knn"] = knn(x[known], labels[known])
    return row


def knn(x: Tensor, labels: Tensor) -> float:
    """Return the balanced accuracy of k-NN on `x` (n, D) with `labels` (n,), without the image itself."""
    unit = F.normalize(x, dim=1)
    similarity = (unit @ unit.T).fill_diagonal_(-torch.inf)
    nearest, places = similarity.topk(min(NEIGHBOURS, len(x) - 1))
    votes = torch.zeros(len(x), int(labels.max()) + 1)
    votes.scatter_add_(1, labels[places], ((nearest - 1) / TEMPERATURE).exp())
    right = (votes.argmax(1) == labels).float()
    return float(torch.stack([right[labels == each].mean() for each in labels.unique()]).mean())
